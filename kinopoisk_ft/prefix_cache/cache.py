"""Run the layers that an adapter leaves as they are once, and train from their states on disk."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from torch import nn

from kinopoisk_ft.data.tokens import ids_digest
from kinopoisk_ft.models.network import Network, blocks_of
from kinopoisk_ft.prefix_cache.cached_objective import (
    HiddenClassification,
    HiddenExamples,
    Resume,
    hidden_states,
)
from kinopoisk_ft.prefix_cache.split import FrozenPrefix, find_prefix
from kinopoisk_ft.prefix_cache.storage import (
    HiddenFile,
    HiddenStates,
    check_space,
    hidden_folder,
    only_one,
)
from kinopoisk_ft.tracking.base import Tracker
from kinopoisk_ft.training.batching import Examples, pad
from kinopoisk_ft.training.device import release_freed_memory, to_device
from kinopoisk_ft.training.memory import halve_on_out_of_memory
from kinopoisk_ft.training.objective import Batch
from kinopoisk_ft.training.precision import Precision

log = logging.getLogger(__name__)

Origin = Literal["built", "found"]
DTYPES: dict[str, np.dtype[Any]] = {"fp32": np.dtype(np.float32), "fp16": np.dtype(np.float16)}
# A hit owes the time of the build: the report adds it to what it stands for.
SECONDS = {
    "train": "prefix_build_seconds",
    "val": "prefix_val_build_seconds",
    "test": "prefix_test_build_seconds",
}


@dataclass(frozen=True)
class Prefixed:
    """What trains in place of token ids, and what the states cost."""

    resume: Resume
    pad_id: int
    parts: dict[str, HiddenExamples]
    origin: Origin
    build_seconds: dict[str, float]

    def objective(self, **options: Any) -> HiddenClassification:
        """Return what to train for; the options are those of `Classification`."""
        return HiddenClassification(self.resume, self.pad_id, **options)

    def tell(self, tracker: Tracker) -> None:
        """Record whether the states were built or found, and the time of the build either way."""
        tracker.tags({"prefix_cache": self.origin})
        tracker.metrics(self.build_seconds, 0)


class PrefixCache:
    """The states of one frozen part for train, validation and test.

    Args:
        kind: fp32 or fp16, on disk; the pass itself runs in the precision of the run.
    """

    def __init__(self, kind: str, pad_id: int, precision: Precision, batch_size: int) -> None:
        self.kind, self.pad_id = kind, pad_id
        self.precision, self.batch_size = precision, batch_size

    def apply(self, network: Network, module: nn.Module, parts: dict[str, Examples]) -> Prefixed:
        """Find the states on disk or make them; leaves the module in evaluation mode.

        Raises:
            UserError: nothing is frozen below, the model cannot be cut, or the disk is too small.
        """
        module.to(self.precision.device)
        probe = self._probe(parts["train"])
        prefix = find_prefix(network, module, probe)
        files = self._files(prefix, probe, parts)
        _log_plan(prefix, files)
        states: dict[str, HiddenStates | None] = {}
        with only_one(files["train"].file.parent):
            states = {name: file.open() for name, file in files.items()}
            missing = [name for name, found in states.items() if found is None]
            if missing:
                check_space(files["train"].file.parent, sum(files[n].bytes for n in missing))
            for name in missing:
                states[name] = self._build(prefix, parts[name], files[name])
            if missing:
                release_freed_memory()  # no later step is as large as these
            seconds = {SECONDS[name]: file.build_seconds() for name, file in files.items()}
        log.info("prefix cache: %s", _origin(missing, sum(seconds.values())))
        examples = {
            name: HiddenExamples(part.input_ids, part.labels, hidden=states[name])
            for name, part in parts.items()
        }
        origin: Origin = "built" if missing else "found"
        return Prefixed(prefix.resume, self.pad_id, examples, origin, seconds)

    def _probe(self, train: Examples) -> Batch:
        """Return the two longest and the two shortest reviews as a batch."""
        order = np.argsort(-train.lengths, kind="stable")
        rows = [*order[:2], *order[2:][-2:]]
        batch = pad([train.input_ids[i] for i in rows], self.pad_id)
        return to_device(batch, self.precision.device)

    def _files(
        self, prefix: FrozenPrefix, probe: Batch, parts: dict[str, Examples]
    ) -> dict[str, HiddenFile]:
        width = prefix.states(**probe).shape[-1]
        digest = f"{prefix.digest(probe)} {self.kind} {self.precision.kind}"
        folder = hidden_folder(digest)
        return {
            name: HiddenFile(
                folder / f"{ids_digest(part.input_ids)}.npy",
                np.ones(len(part), np.int64) if prefix.pooled else part.lengths,
                width,
                DTYPES[self.kind],
            )
            for name, part in parts.items()
        }

    def _build(self, prefix: FrozenPrefix, part: Examples, file: HiddenFile) -> HiddenStates:
        """Write the states; where memory runs out again, in smaller batches, here and later on."""
        about = {"model": type(prefix.network.module).__name__, "seam": str(prefix.seam)}

        def attempt(rows: int) -> HiddenStates:
            blocks = hidden_states(
                prefix.states, part, file.lengths, self.pad_id, self.precision, rows
            )
            return file.write(blocks, {**about, "precision": self.precision.kind})

        states, self.batch_size = halve_on_out_of_memory(
            attempt, self.batch_size, self.precision.device, "the prefix cache"
        )
        return states


def _log_plan(prefix: FrozenPrefix, files: dict[str, HiddenFile]) -> None:
    log.info(
        "prefix cache: %d of %d layers run once, %s of each review is kept: %.1f MiB in %s",
        prefix.seam.layer,
        len(blocks_of(prefix.network)),
        "one vector" if prefix.pooled else "every token's state",
        sum(file.bytes for file in files.values()) / 2**20,
        files["train"].file.parent,
    )


def _origin(missing: list[str], seconds: float) -> str:
    if not missing:
        return f"found; it took {seconds:.1f} s to build"
    return f"built for {', '.join(missing)}; all parts together took {seconds:.1f} s"
