"""When to write a checkpoint, and how a run goes on from one."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from torch import Tensor, nn

from kinopoisk_ft.errors import UserError
from kinopoisk_ft.files import check_space, writing
from kinopoisk_ft.training.checkpoint.best import BestWeights, trained_tensors
from kinopoisk_ft.training.checkpoint.contents import (
    capture,
    frozen_digest,
    restore,
    validate_checkpoint,
)
from kinopoisk_ft.training.checkpoint.folder import Checkpoint, CheckpointFolder
from kinopoisk_ft.training.clock import Clock
from kinopoisk_ft.training.distributed.processes import (
    all_equal,
    broadcast,
    broadcast_from_main,
    is_main,
)
from kinopoisk_ft.training.precision import Kind
from kinopoisk_ft.training.signals import Stopped
from kinopoisk_ft.training.state import State

log = logging.getLogger(__name__)

SECONDS = 60.0  # between checkpoints by the clock: what a crash may cost
OTHERWISE = "choose another output_dir, or start over in this one with resume=never"
SHARE = 50  # and at least so many times what the last one took: 2% of the time
ADAMW = 3  # numbers of each weight in a checkpoint
SPEED = 2e8  # bytes a second that a slow disk takes, before one was written


class Flushes(Protocol):
    """Who must have written all it was told before a checkpoint says that it was."""

    def flush(self) -> None:
        """Write what is buffered."""
        ...


class CheckpointManager:
    """The checkpoints of one training run.

    While entered, a stop between two steps writes a last one.

    Args:
        every: optimizer steps between two; None goes by the clock, 0 writes none.
        about: what must be the same for a checkpoint to be of this run, in words of the user;
            None neither writes nor reads any.
    """

    def __init__(
        self,
        folder: Path,
        state: State,
        best: BestWeights,
        clock: Clock,
        recorder: Flushes,
        every: int | None,
        about: Mapping[str, str] | None,
    ) -> None:
        self.snapshots = CheckpointFolder(folder)
        self.state, self.best, self.clock, self.recorder = state, best, clock, recorder
        self.every, self.writes = every, about is not None and every != 0
        self.reads = about is not None
        device, precision = state.precision.device.type, state.precision.kind
        self.about = {**(about or {}), "device": device, "precision": precision}
        self._frozen = ""
        self._saved = (0, 0)
        self._since = time.monotonic()
        self._took: float | None = None  # seconds of the last checkpoint

    def resume(self) -> None:
        """Go on from the last whole checkpoint, if there is one.

        Raises:
            UserError: it is of other data, of another base, of another device or precision, or is
                none that this run could have written; or the processes of this run differ in these;
                or there is no room for what training will write.
        """
        if not all_equal(self.about):
            raise UserError(
                "the processes of this run do not read the same reviews and tokens",
                where="data, or the tokenizer's cache, on another machine",
                fix="give all machines the same files and versions",
            )
        broadcast_from_main(self._check_room)
        read: list[Checkpoint] = []  # by rank 0
        plain = broadcast_from_main(lambda: self._newest(read))
        if plain is None:
            self.best.discard()
            return
        folder = read[0].folder if read else self.snapshots.folder
        self._check(_about(plain), folder)
        tensors: dict[str, Tensor] = {}
        broadcast_from_main(lambda: tensors.update(read[0].tensors()))
        if wrong := broadcast_from_main(lambda: validate_checkpoint(self.state, tensors, plain)):
            raise UserError(
                f"the checkpoint in this folder does not fit this run: {wrong}",
                where=str(folder),
                fix=OTHERWISE,
            )
        restore(self.state, tensors, plain)
        self.best.load_state_dict(plain["best_weights"])
        # What was done again to get here is not counted again.
        self.clock.seconds.update(plain["seconds"])
        self._saved = (self.state.step, self.state.evaluated)
        if self.state.meter.read(self.state.step, self.state.tokens):
            self.state.steps = self.state.step
        done, length = self.state.step, self.state.length
        log.info("going on after step %d of %s: %s", done, length, folder.name)

    def _check_room(self) -> None:
        """Look for the room of the best weights and of a checkpoint before the work, not after."""
        weights = _count_trained_bytes(self.state.model)
        with writing(self.snapshots.folder):
            check_space(self.snapshots.folder, (1 + ADAMW * self.writes) * weights)

    def _newest(self, read: list[Checkpoint]) -> dict[str, Any] | None:
        found = self.snapshots.newest() if self.reads else None
        read += [found] if found else []
        return found.plain if found else None

    def save_if_due(self) -> None:
        """Write a checkpoint when its step or its time has come."""
        if self.every is None:
            due = self._is_after(max(SECONDS, SHARE * (self._took or 0.0)))
        else:
            due = self.every > 0 and self.state.step % self.every == 0
        if due:
            self.save()

    def save_last(self) -> None:
        """Keep the end of training: the test, or the disk that the model goes to, may fail.

        By the clock, only where training took so long that this is a small share of it. There may
        be no room for it beside the model.
        """
        took = self._took
        if took is None:
            took = ADAMW * _count_trained_bytes(self.state.model) / SPEED
        if self.every is None and not self._is_after(SHARE * took):
            return
        try:
            self.save()
        except UserError as error:
            log.warning("the end of training is kept nowhere but in memory: %s", error)

    def _is_after(self, seconds: float) -> bool:
        return bool(broadcast(time.monotonic() - self._since >= seconds))

    def save(self) -> None:
        """Write a checkpoint, unless the last one was of this very moment."""
        moment = (self.state.step, self.state.evaluated)
        if not self.writes or moment == self._saved:
            return
        started = time.monotonic()
        with self.clock.section("checkpoint"):
            self.recorder.flush()
            tensors, plain = capture(self.state)
            plain |= {
                "about": self._about(),
                "best_weights": self.best.state_dict(),
                "seconds": dict(self.clock.seconds),
            }
            best = self.best.file
            if is_main():
                self.snapshots.write(tensors, plain, {best.name: self.best.digest} if best else {})
            self.best.discard()
        self._saved = moment
        self._since = time.monotonic()
        self._took = self._since - started
        log.debug("checkpoint after step %d in %.2f s", self.state.step, self._took)

    def __enter__(self) -> CheckpointManager:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if isinstance(error, Stopped) and not error.torn:
            self.save()
            kept = self._saved > (0, 0) or self.writes
            hint = "start the same command again to go on" if kept else "nothing is kept"
            log.warning("%s after step %d of %s: %s",
                        error, self.state.step, self.state.length, hint)  # fmt: skip

    def _about(self) -> dict[str, str]:
        # Once, and not before it is needed: a large base takes a second.
        if not self._frozen:
            found = frozen_digest(self.state.model)
            self._frozen = broadcast_from_main(lambda: found)
        return {**self.about, "frozen weights": self._frozen}

    def _check(self, kept: Mapping[str, str], folder: Path) -> None:
        now = self._about()
        differing = [key for key in now if kept.get(key) != now[key]]
        if differing:
            texts = [f"{key}: {kept.get(key)} there, {now[key]} now" for key in differing]
            raise UserError(
                "the checkpoint in this folder is of another run:\n    " + "\n    ".join(texts),
                where=str(folder),
                fix=OTHERWISE,
            )


def _count_trained_bytes(model: nn.Module) -> int:
    return sum(value.nbytes for value in trained_tensors(model).values())


def read_precision(folder: Path) -> Kind | None:
    """Return the precision in which an unfinished run trains; None where there is no checkpoint.

    "auto" measures: it may choose differently the second time, and the run would not be one.
    """
    found = CheckpointFolder(folder).newest()
    kind: Kind | None = _about(found.plain).get("precision") if found else None
    return kind


def _about(plain: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a checkpoint says it is of; nothing fits one that does not say."""
    about = plain.get("about")
    return about if isinstance(about, dict) else {}
