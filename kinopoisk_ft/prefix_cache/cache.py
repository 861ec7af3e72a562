"""Cache the activations of frozen layers, so that only the other layers run during training."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from kinopoisk_ft.data.tokens import ids_digest
from kinopoisk_ft.models.network import Network, list_blocks
from kinopoisk_ft.prefix_cache.split import SplitNetwork, find_split
from kinopoisk_ft.prefix_cache.storage import (
    CachedActivations,
    acquire_lock,
    cache_folder,
    check_space,
)
from kinopoisk_ft.provenance import get_hardware
from kinopoisk_ft.tracking.base import Tracker
from kinopoisk_ft.training.batching import Examples, batch_by_length, count_ids
from kinopoisk_ft.training.device import release_freed_memory, to_device
from kinopoisk_ft.training.memory import halve_on_out_of_memory
from kinopoisk_ft.training.objective import Batch, Classification
from kinopoisk_ft.training.precision import Precision
from kinopoisk_ft.training.progress import Progress

log = logging.getLogger(__name__)

DTYPES: dict[str, np.dtype[Any]] = {"fp32": np.dtype(np.float32), "fp16": np.dtype(np.float16)}
# Names of the metrics for the time to build the cache of each split. Every run that uses the cache
# logs them, and the report adds them to the times of training and evaluation.
SECONDS = {
    "train": "prefix_build_seconds",
    "val": "prefix_val_build_seconds",
    "test": "prefix_test_build_seconds",
}


@dataclass(frozen=True, kw_only=True)
class CachedExamples(Examples):
    """Examples with cached activations of each window.

    A window has one vector per token, or one pooled vector. A review that is not divided into
    windows counts as one window.
    """

    activations: CachedActivations

    @cached_property
    def numbers(self) -> list[range]:
        """Return, for each review, the indices of its windows in `activations`."""
        if self.windows is None:
            return [range(i, i + 1) for i in range(len(self))]
        return self.windows.ranges(count_ids(self.input_ids))


class CachedClassification(Classification):
    """A classification objective for cached activations."""

    def __init__(self, split: SplitNetwork, pad_id: int, **options: Any) -> None:
        super().__init__(pad_id, **options)
        self.split = split

    def collate(self, examples: Examples, rows: np.ndarray, rng: np.random.Generator) -> Batch:
        """Build a batch with cached activations.

        The shape of the activations is (batch, length, d_model). For models that read windows, it
        is (batch, windows, length, d_model). If the cache stores pooled vectors, the length is 1.
        """
        assert isinstance(examples, CachedExamples)
        batch = super().collate(examples, rows, rng)
        blocks = [[examples.activations[i] for i in examples.numbers[row]] for row in rows]
        # Like input_ids, the activations have at least one position.
        longest = max(1, max(len(block) for windows in blocks for block in windows))
        first = blocks[0][0]
        # The shape is (batch, windows, length, d_model).
        shape = (len(blocks), max(map(len, blocks)), longest, first.shape[1])
        # fp16 values are copied to the device as they are, and `logits` converts them there.
        padded = np.zeros(shape, first.dtype)
        for row, windows in zip(padded, blocks, strict=True):
            for place, block in zip(row, windows, strict=False):
                place[: len(block)] = block
        activations = torch.from_numpy(padded if examples.windows is not None else padded[:, 0])
        return {**batch, "activations": activations}

    def logits(self, model: nn.Module, batch: Batch) -> Tensor:
        """Compute the logits (batch, classes) from cached activations."""
        logits: Tensor = self.split.run_upper(
            batch["activations"].float(), batch["input_ids"], batch["attention_mask"]
        ).logits
        return logits


@dataclass(frozen=True)
class CachedData:
    """Examples with cached activations, and the build time of the cache.

    Args:
        split: the network, separated into frozen and trained layers.
        make_objective: function that creates the training objective; it takes the keyword
            arguments of `Classification`.
        parts: examples by name: train, val and test.
        origin: "built" if this run wrote a file of the cache, else "found".
        build_seconds: {metric name: seconds to build the cache of one part}; see SECONDS.
    """

    split: SplitNetwork
    make_objective: Callable[..., CachedClassification]
    parts: dict[str, CachedExamples]
    origin: Literal["built", "found"]
    build_seconds: dict[str, float]

    def record(self, tracker: Tracker) -> None:
        """Log whether the cache was built or found, and how long it took to build."""
        tracker.tags({"prefix_cache": self.origin})
        tracker.metrics(self.build_seconds, 0)


class PrefixCache:
    """Caches the activations of frozen layers on disk.

    Args:
        kind: dtype of the activations on disk, fp32 or fp16.
        pad_id: id of the padding token.
        precision: device and dtype of the forward pass.
        batch_size: reviews per forward pass.
    """

    def __init__(self, kind: str, pad_id: int, precision: Precision, batch_size: int) -> None:
        self.kind, self.pad_id = kind, pad_id
        self.precision, self.batch_size = precision, batch_size

    def apply(self, network: Network, module: nn.Module, parts: dict[str, Examples]) -> CachedData:
        """Load the activations, or compute and save them if they are missing or damaged.

        The module is left in evaluation mode.

        Args:
            module: the network with its adapter.
            parts: examples by name: train, val and test.

        Raises:
            UserError: no layer is frozen, the model cannot be split, or the disk is too full.
        """
        module.to(self.precision.device)
        windows = {name: part.split_windows() for name, part in parts.items()}
        # The two longest and the two shortest windows: a batch with truncated and padded rows.
        order = np.argsort(-windows["train"].lengths, kind="stable")
        batch = windows["train"].pad([*order[:2], *order[-2:]], self.pad_id)
        batch = to_device(batch, self.precision.device)
        split = find_split(network, module, batch)
        activations = self._locate(split, batch, windows)
        folder = activations["train"].file.parent
        unit = "review" if parts["train"].windows is None else "window"
        log.info(
            "prefix cache: the first %d of %d layers run once, and %s is saved (%.1f MiB in %s)",
            split.layer,
            len(list_blocks(network)),
            f"one vector per {unit}" if split.pooling else "one vector per token",
            sum(part.nbytes for part in activations.values()) / 2**20,
            folder,
        )
        with acquire_lock(folder):
            # Look for files only under the lock, because another run may have just built them.
            missing = [name for name, part in activations.items() if not part.load()]
            if missing:
                check_space(folder, sum(activations[name].nbytes for name in missing))
            for name in missing:
                self._build(split, windows[name], activations[name])
        if missing:
            # These batches need more memory than any later step, so return it to the system.
            release_freed_memory()
        seconds = {SECONDS[name]: part.build_seconds for name, part in activations.items()}
        built = f"built for {', '.join(missing)}" if missing else "found on disk"
        log.info("prefix cache: %s; build time of all splits %.1f s", built, sum(seconds.values()))
        examples = {
            name: CachedExamples(
                part.input_ids, part.labels, part.windows, activations=activations[name]
            )
            for name, part in parts.items()
        }
        make_objective = partial(CachedClassification, split, self.pad_id)
        return CachedData(split, make_objective, examples, "built" if missing else "found", seconds)

    def _locate(
        self, split: SplitNetwork, batch: Batch, parts: dict[str, Examples]
    ) -> dict[str, CachedActivations]:
        width = split.run_lower(**batch).shape[-1]
        # The weights, the dtype on disk and the precision of the forward pass change the values.
        # Other hardware changes the build time, which reports add to the times of a run.
        device = self.precision.device.type
        key = (split.digest(batch), self.kind, self.precision.kind, device, get_hardware(device))
        folder = cache_folder(" ".join(key))
        return {
            name: CachedActivations(
                # Activations do not depend on labels, so the token ids are enough.
                folder / f"{ids_digest(part.input_ids)}.npy",
                np.ones(len(part), np.int64) if split.pooling else part.lengths,
                width,
                DTYPES[self.kind],
            )
            for name, part in parts.items()
        }

    def _build(self, split: SplitNetwork, part: Examples, activations: CachedActivations) -> None:
        model = type(split.network.module).__name__
        about = {"model": model, "split": str(split), "precision": self.precision.kind}

        def attempt(rows: int) -> None:
            # A failed attempt leaves no file, so the next attempt computes all batches again.
            activations.write(self._compute(split, part, activations.lengths, rows), about)

        _, self.batch_size = halve_on_out_of_memory(
            attempt, self.batch_size, self.precision.device, "the prefix cache"
        )

    # In a generator, the mode applies only while the code of the generator runs.
    @torch.inference_mode()
    def _compute(
        self, split: SplitNetwork, part: Examples, lengths: np.ndarray, batch_size: int
    ) -> Iterator[tuple[int, np.ndarray]]:
        # The longest reviews come first, so a lack of memory shows at the start.
        batches = batch_by_length(part, batch_size)
        with Progress(0, len(batches)) as progress:
            for step, rows in enumerate(batches, start=1):
                batch = part.pad(rows, self.pad_id)
                with self.precision.autocast():
                    activations = split.run_lower(**to_device(batch, self.precision.device))
                # A block is float32 and contains padding. The result is (lengths[row], d_model).
                # NumPy has no bfloat16, so convert the activations to float32 first.
                for row, block in zip(rows, activations.float().cpu().numpy(), strict=True):
                    yield int(row), block[: lengths[row]]
                progress.to(step)
