"""Write checkpoints during training, and resume a run from the last checkpoint."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from kinopoisk_ft.errors import UserError
from kinopoisk_ft.files import check_space, wrap_checkpoint_errors
from kinopoisk_ft.training.checkpoint.best import BestWeights, trained_tensors
from kinopoisk_ft.training.checkpoint.contents import (
    join_tensors,
    split_tensors,
    upgrade_format_1,
    validate_checkpoint,
)
from kinopoisk_ft.training.checkpoint.folder import Checkpoint, CheckpointFolder
from kinopoisk_ft.training.clock import Clock
from kinopoisk_ft.training.distributed.processes import (
    all_equal,
    broadcast,
    broadcast_from_main,
    broadcast_tensors,
    is_main,
)
from kinopoisk_ft.training.distributed.sharding import gather_tensor
from kinopoisk_ft.training.monitor import Recorder
from kinopoisk_ft.training.precision import Kind
from kinopoisk_ft.training.signals import Stopped
from kinopoisk_ft.training.state import State

if TYPE_CHECKING:
    # This package takes half a second to import.
    from torch.distributed.checkpoint.stateful import Stateful

log = logging.getLogger(__name__)

# Seconds between checkpoints, which is the most work that a crash can cost. If writing is slow, the
# interval is MIN_RATIO times the duration of the last write, so that writing takes 2% of the time.
SECONDS = 60.0
MIN_RATIO = 50
# With AdamW, a checkpoint stores each weight and its two moments.
NUMBERS_PER_WEIGHT = 3
START_OVER = "choose another output_dir, or start over in this one with resume=never"


class CheckpointManager:
    """Writes the checkpoints of a run, and resumes the run from the last checkpoint.

    Training must run in a `with` block of the manager. If a signal stops the run between two steps,
    the manager writes a last checkpoint at the end of this block.

    Args:
        every: number of optimizer steps between checkpoints. If None, checkpoints are written at
            time intervals. If 0, they are not written.
        about: properties of this run, by name. A run resumes only from a checkpoint with the same
            properties. If None, checkpoints are neither written nor read.
    """

    def __init__(
        self,
        folder: Path,
        state: State,
        best: BestWeights,
        clock: Clock,
        recorder: Recorder,
        every: int | None,
        about: Mapping[str, str] | None,
    ) -> None:
        self.checkpoints = CheckpointFolder(folder)
        self.state, self.best, self.clock, self.recorder = state, best, clock, recorder
        # The clock is loaded before the state, which reads it if the budget is in seconds.
        self.parts: dict[str, Stateful] = {"clock": clock, "best_weights": best, "state": state}
        # If `every` is 0, no checkpoints are written, but the run can resume from an existing one.
        self.every, self.writes = every, about is not None and every != 0
        self.reads = about is not None
        device, precision = state.precision.device.type, state.precision.kind
        # Devices and precisions round differently, so a resumed run must not change them.
        self.about = {**(about or {}), "device": device, "precision": precision}
        self._frozen_digest = ""
        # The step and the last evaluation that the last checkpoint contains.
        self._saved = (0, 0)
        # In seconds. The monotonic clock does not change if the system time is set.
        self._saved_at = time.monotonic()
        # The duration of the last write in seconds.
        self._write_seconds = 0.0

    def resume(self) -> None:
        """Resume from the last valid checkpoint, if there is one.

        Raises:
            UserError: the checkpoint does not fit this run, the processes of this run have
                different data, or the disk has too little space.
        """
        if not all_equal(self.about):
            raise UserError(
                "the processes of this run have different reviews, labels or tokens",
                where="the data or the tokenizer cache on one of the machines",
                fix="use the same files and the same package versions on all machines",
            )
        # Only rank 0 writes. If it lacks space, the other ranks end, too.
        broadcast_from_main(self._check_room)
        found = broadcast_from_main(lambda: self.checkpoints.newest() if self.reads else None)
        if found is None:
            # Weights of an earlier process are useless without a checkpoint that refers to them.
            self.best.discard()
            return
        self._check_about(found)
        self._load(found)
        self._saved = (self.state.step, self.state.evaluated)
        length, name = self.state.length, found.folder.name
        log.info("resumed after step %d of %s from %s", self.state.step, length, name)

    def _load(self, checkpoint: Checkpoint) -> None:
        expected = {name: part.state_dict() for name, part in self.parts.items()}
        # Compare with an empty clock, which allows sections that this run has not measured yet.
        expected["clock"] = Clock().state_dict()
        read: dict[str, Tensor] = {}
        try:
            # `update` returns None, so the tensors are not pickled. `broadcast_tensors` sends them.
            broadcast_from_main(lambda: read.update(checkpoint.load_tensors()))
            join = upgrade_format_1 if checkpoint.format == 1 else join_tensors
            contents = join(checkpoint.plain, dict(broadcast_tensors(read)))
            # Earlier versions did not store the peak, so their peak counts as 0.
            contents.get("state", {}).setdefault("peak_memory_mb", 0.0)
            # All parts are compared before the first one is loaded.
            wrong = validate_checkpoint(expected, {name: contents.get(name) for name in expected})
            if wrong is None:
                for name, part in self.parts.items():
                    part.load_state_dict(contents[name])
        except (
            AttributeError, LookupError, RuntimeError, SafetensorError, TypeError, ValueError
        ) as error:  # fmt: skip
            wrong = f"{type(error).__name__}: {error}"
        if wrong:
            raise UserError(
                f"the checkpoint in this folder does not match this run: {wrong}",
                where=str(checkpoint.folder),
                fix=START_OVER,
            )

    def _check_room(self) -> None:
        weights = sum(value.nbytes for value in trained_tensors(self.state.model).values())
        with wrap_checkpoint_errors(self.checkpoints.folder):
            # In bytes: one copy for the best weights, and the numbers of a checkpoint.
            check_space(self.checkpoints.folder, (1 + NUMBERS_PER_WEIGHT * self.writes) * weights)

    def save_if_due(self) -> None:
        """Write a checkpoint if enough steps or enough time have passed."""
        if self.every is None:
            due = self._is_due_by_clock()
        else:
            due = self.every > 0 and self.state.step % self.every == 0
        if due:
            self.save()

    def save_last(self) -> None:
        """Write a checkpoint after the last step, in case testing or saving the model fails.

        If the disk is full, only log a warning, because there may still be space for the model.
        """
        # Shortly after a checkpoint there is little work to lose.
        if self.every is None and not self._is_due_by_clock():
            return
        try:
            self.save()
        except UserError as error:
            log.warning("could not write a checkpoint after the last step: %s", error)

    def _is_due_by_clock(self) -> bool:
        interval = max(SECONDS, MIN_RATIO * self._write_seconds)
        # The ranks measure different times, but have to call `save` at the same step.
        return bool(broadcast(time.monotonic() - self._saved_at >= interval))

    def save(self) -> None:
        """Write a checkpoint if a step or an evaluation has ended since the last checkpoint."""
        position = (self.state.step, self.state.evaluated)
        if not self.writes or position == self._saved:
            return
        started = time.monotonic()
        # Entering the section adds the time of training until now to the clock, which is saved.
        with self.clock.section("checkpoint"):
            # A run that resumes from this checkpoint does not record these metrics again.
            self.recorder.flush()
            tensors: dict[str, Tensor] = {}
            contents = {name: part.state_dict() for name, part in self.parts.items()}
            # All ranks take part, because this gathers sharded tensors on rank 0.
            plain = split_tensors(contents, tensors) | {"about": self._read_about()}
            best = self.best.file
            if is_main():
                external = {best.name: self.best.digest} if best else {}
                self.checkpoints.write(tensors, plain, external)
            # `write` may have deleted the last checkpoint that needed some weight file.
            self.best.discard()
        self._saved = position
        self._saved_at = time.monotonic()
        self._write_seconds = self._saved_at - started
        log.debug("checkpoint after step %d in %.2f s", self.state.step, self._write_seconds)

    def __enter__(self) -> CheckpointManager:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        # In the middle of a step, the weights and the counters do not match.
        if isinstance(error, Stopped) and not error.mid_step:
            self.save()
            hint = "no checkpoint was written"
            # A run that writes no checkpoints may have resumed from one.
            if self._saved > (0, 0) or self.writes:
                hint = "run the same command again to continue"
            log.warning("%s after step %d of %s: %s",
                        error, self.state.step, self.state.length, hint)  # fmt: skip

    def _read_about(self) -> dict[str, str]:
        # The digest of a large pretrained model takes a second, so it is computed only once.
        if not self._frozen_digest:
            # All ranks compute a digest, but only rank 0 gets the full weights of sharded layers.
            digest = digest_frozen_weights(self.state.model)
            self._frozen_digest = broadcast_from_main(lambda: digest)
        return {**self.about, "frozen weights": self._frozen_digest}

    def _check_about(self, checkpoint: Checkpoint) -> None:
        now = self._read_about()
        # Earlier versions did not store a digest of the labels.
        then = {"labels": now.get("labels"), **_get_about(checkpoint)}
        differing = [key for key in now if then.get(key) != now[key]]
        if differing:
            texts = [
                f"{k}: {then.get(k)} in the checkpoint, {now[k]} in this run" for k in differing
            ]
            raise UserError(
                "the checkpoint in this folder comes from a run that differs from this one:\n    "
                + "\n    ".join(texts),
                where=str(checkpoint.folder),
                fix=START_OVER,
            )


def _get_about(checkpoint: Checkpoint | None) -> dict[str, Any]:
    about = checkpoint.plain.get("about") if checkpoint else None
    return about if isinstance(about, dict) else {}


def read_precision(folder: Path) -> Kind | None:
    """Return the precision of the last checkpoint in a folder; None if there is no checkpoint."""
    kind: Kind | None = _get_about(CheckpointFolder(folder).newest()).get("precision")
    return kind


def digest_frozen_weights(model: nn.Module) -> str:
    """Return a hexadecimal SHA-256 digest of the parameters that are not trained."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype};".encode())
            flat = gather_tensor(parameter).cpu().contiguous().reshape(-1)
            # NumPy has no bfloat16, so the weights are hashed as bytes.
            digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()
