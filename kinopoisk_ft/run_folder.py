"""What an output folder knows of a run that has not come to its end."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from kinopoisk_ft.config.trust import with_current_targets
from kinopoisk_ft.errors import UserError
from kinopoisk_ft.files import write_whole
from kinopoisk_ft.tracking.base import flatten

log = logging.getLogger(__name__)

FILE = "unfinished.json"
LOCK = "run.lock"
LOCK_PATIENCE = 10.0  # seconds for a process that was told to stop and is at its end
CHECKPOINTS = "checkpoints"
START_OVER = "choose another output_dir, or start over in this one with resume=never"
# Where results go, and what may be changed when a run goes on.
FREE = (
    "output_dir", "result_json", "resume", "rerun", "tracking", "trainer.checkpoint_every",
    "trainer.strategy",
)  # fmt: skip


class Unfinished:
    """The file in an output folder that is there from a run's start to its end.

    Args:
        config: the composed config, resolved.
    """

    def __init__(self, out_dir: Path, config: dict[str, Any]) -> None:
        self.file, self.folder = out_dir / FILE, out_dir / CHECKPOINTS
        self.config = config

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep other processes from training in the folder: each would delete the other's work.

        Raises:
            UserError: another process trains there.
        """
        lock = FileLock(self.file.with_name(LOCK))
        try:
            lock.acquire(timeout=LOCK_PATIENCE)
        except Timeout as error:
            raise UserError(
                "another process trains in this folder",
                where=str(self.file.parent),
                fix="wait for its end, or choose another output_dir",
            ) from error
        except (OSError, NotImplementedError) as error:
            log.warning("that no other process trains here could not be made sure: %s", error)
        try:
            yield
        finally:
            lock.release()

    def reopen(self) -> str | None:
        """Return the id of the run to go on with; None, and checkpoints deleted, to start one.

        Raises:
            UserError: there are checkpoints of another config.
        """
        found = None if self.config["resume"] == "never" else _read(self.file)
        if found is None:
            self._clear()
            return None
        differing = _differing(found["config"], self.config)
        if not differing:
            log.info("going on with the run that was not finished in %s", self.file.parent)
            return str(found["run_id"])
        if any(self.folder.glob("checkpoint-*")):
            raise UserError(
                "this folder has checkpoints of another config:\n    " + "\n    ".join(differing),
                where=str(self.folder),
                fix=START_OVER,
            )
        self._clear()
        return None

    def begin(self, run_id: str) -> None:
        """Write the file: from now on the run is to be finished."""
        text = json.dumps({"run_id": run_id, "config": self.config}, ensure_ascii=False, indent=2)
        write_whole(self.file, text + "\n")

    def end(self) -> None:
        """Delete the file, then the checkpoints; the best weights stay."""
        self._clear()

    def _clear(self) -> None:
        self.file.unlink(missing_ok=True)
        for folder in self.folder.glob("checkpoint-*"):
            shutil.rmtree(folder, ignore_errors=True)


def kept_seed(out_dir: Path, resume: str) -> int | None:
    """Return the seed that an unfinished run in the folder drew; None where there is none."""
    found = None if resume == "never" else _read(out_dir / FILE)
    return None if found is None else int(found["config"]["seed"])


def _read(file: Path) -> dict[str, Any] | None:
    if not file.is_file():
        return None
    try:
        found: dict[str, Any] = json.loads(file.read_text("utf-8"))
        flatten(found["config"]), found["run_id"], int(found["config"]["seed"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(
            f"what is known of the unfinished run cannot be read: {error}",
            where=str(file),
            fix=START_OVER,
        ) from error
    # A run that an earlier version started is resumed under the current names.
    return found | {"config": with_current_targets(found["config"])}


def _differing(kept: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Return a line for each key whose values differ, but for those that may."""
    before, after = flatten(kept), flatten(now)
    keys = [k for k in sorted({*before, *after}) if not k.startswith(FREE)]
    missing = object()
    return [
        f"{key}: {before.get(key, 'nothing')!r} there, {after.get(key, 'nothing')!r} now"
        for key in keys
        if before.get(key, missing) != after.get(key, missing)
    ]
