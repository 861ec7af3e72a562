"""Track the parent run of a sweep."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Any, ClassVar

from filelock import FileLock
from hydra.errors import InstantiationException
from hydra.experimental.callback import Callback
from hydra.utils import get_class, instantiate
from omegaconf import DictConfig

from kinopoisk_ft.config.prepared import get_overrides
from kinopoisk_ft.errors import UserError
from kinopoisk_ft.files import write_atomically
from kinopoisk_ft.run_folder import (
    LOCK_FILE,
    check_sweep_folders,
    explain_folder_error,
    lock_folder,
)
from kinopoisk_ft.tracking.base import Tracker
from kinopoisk_ft.tracking.event_log import OFFLINE
from kinopoisk_ft.tracking.offline import close_killed
from kinopoisk_ft.training.distributed import torchrun

log = logging.getLogger(__name__)

# Files in the folder of `notes_folder`: the id of the parent run, and the forecast of a grid.
PARENT, FORECAST = "parent.json", "forecast.json"
# MLflow tag of a skipped job with the id of the identical finished run.
SAME_AS = "kinopoisk_ft.same_as"


def notes_folder(sweep_dir: Path) -> Path:
    """Return the folder that contains the parent run's id and the outcomes of the jobs."""
    return sweep_dir / "jobs"


def read_parent(sweep_dir: Path) -> str | None:
    """Return the id of a sweep's parent run, or None if the jobs are not tracked.

    Raises:
        UserError: the file with the id is missing or damaged.
    """
    file = notes_folder(sweep_dir) / PARENT
    try:
        parent = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"the id of the sweep's parent run cannot be read: {error}",
            where=str(file),
            fix="start the sweep again with the same command and the same output_dir",
        ) from error
    return None if parent is None else str(parent)


class ParentRun(Callback):
    """A Hydra callback that starts the parent run of a sweep before the first job.

    Args:
        by_sweeper: if True, the sweeper calls `open` after checking its own config. If False, the
            callback calls `open` before the sweeper starts.
    """

    # Hydra does not call `on_multirun_end` if a job failed. Therefore `cli.py` finds the callback
    # in this attribute, and calls `close` to end the parent run.
    opened: ClassVar[ParentRun | None] = None

    def __init__(self, by_sweeper: bool = False) -> None:
        self.by_sweeper = by_sweeper
        self.sweep_dir = Path()
        self.run_id: str | None = None
        # This tracker records nothing; it remains if the configured tracker cannot be created.
        self.tracker = Tracker(uri=None, experiment="")
        self._lock: FileLock | None = None

    def __getstate__(self) -> dict[str, Any]:
        # Launchers pickle callbacks for worker processes, which do not need the tracker.
        return {**self.__dict__, "tracker": None, "_lock": None}

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Check the options of the sweep, and start the parent run unless the sweeper starts it."""
        try:
            if torchrun.world_size() > 1:
                raise UserError(
                    "torchrun starts the processes of one run, but this is a sweep of several runs",
                    fix="start each run with torchrun, or the whole sweep without torchrun",
                )
            check_sweep_folders(config)
            if not self.by_sweeper:
                self.lock(config)
                self.open(config)
        except (UserError, OSError) as raised:
            error = explain_folder_error(raised) if isinstance(raised, OSError) else raised
            self.unlock()
            # Hydra would only log the exception, and every job would fail for the same reason.
            print(f"error: {error}", file=sys.stderr)
            sys.exit(1)

    def lock(self, config: DictConfig) -> None:
        """Lock the folder of the sweep, because two sweeps would delete each other's outcomes.

        Raises:
            UserError: another process has locked the folder, or the lock file cannot be written.
        """
        self.sweep_dir = Path(config.hydra.sweep.dir).absolute()
        notes = notes_folder(self.sweep_dir)
        notes.mkdir(parents=True, exist_ok=True)
        self._lock = lock_folder(self.sweep_dir, notes / LOCK_FILE)

    def unlock(self) -> None:
        """Release the lock of `lock`, if there is one."""
        if self._lock is not None:
            self._lock.release()

    def open(self, config: DictConfig, resumed: bool = False) -> None:
        """Start the parent run, and save its id.

        Args:
            resumed: whether to continue the old parent run and to keep the outcomes of its jobs.

        Raises:
            UserError: the store cannot be opened, or the launcher can start no jobs now.
        """
        # A sweep that its launcher refuses must not leave an empty parent run.
        launcher = get_class(config.hydra.launcher["_target_"])
        if hasattr(launcher, "check"):
            launcher.check(config.hydra.launcher)
        self.sweep_dir = Path(config.hydra.sweep.dir).absolute()
        notes = notes_folder(self.sweep_dir)
        parent = None
        if resumed:
            try:
                parent = read_parent(self.sweep_dir)
            except UserError as error:
                log.warning("a new parent run is created, because %s", error.what)
        self.run_id = self._start(config, parent)
        # The table at the end must not list the jobs of an earlier sweep in this folder.
        for old in [] if resumed else notes.glob("[0-9]*.json"):
            old.unlink()
        # A new forecast is written only after this, and a search has none.
        (notes / FORECAST).unlink(missing_ok=True)
        # Jobs may run in other processes or on other machines, so they read the id from a file.
        write_atomically(notes / PARENT, json.dumps(self.run_id))
        ParentRun.opened = self

    def _start(self, config: DictConfig, resume: str | None) -> str | None:
        try:
            self.tracker = instantiate(config.tracking)
        except InstantiationException:
            # Each job validates its config and reports the error.
            return None
        choices = config.hydra.runtime.choices
        name = next((str(choices[k]) for k in ("sweep", "experiment") if choices.get(k)), "sweep")
        tags = {"kinopoisk_ft.kind": "sweep", "overrides": " ".join(get_overrides(config.hydra))}
        # Unfinished jobs of a killed parent run become children of this run when they are resumed.
        close_killed(self.tracker, self.sweep_dir, resume)
        return self.tracker.start(name, {}, tags, resume=resume, folder=self.sweep_dir) or None

    def find_store(self) -> tuple[str, str] | None:
        """Return the MLflow store's URI and the parent run's id; None if either is unknown."""
        uri = self.tracker.get_uri()
        # No store knows a local id.
        is_known = self.run_id is not None and not self.run_id.startswith(OFFLINE)
        return (uri, str(self.run_id)) if uri and is_known else None

    def close(self, status: str) -> None:
        """End the parent run with the status FINISHED, FAILED or KILLED, and unlock the folder."""
        self.tracker.finish(status)
        self.unlock()
        ParentRun.opened = None
