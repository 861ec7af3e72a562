"""Open one parent run for a sweep; its jobs read its id from the sweep's folder."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Any, ClassVar

from hydra.errors import InstantiationException
from hydra.experimental.callback import Callback
from hydra.utils import instantiate
from omegaconf import DictConfig

from kinopoisk_ft.errors import UserError
from kinopoisk_ft.files import write_atomically
from kinopoisk_ft.run_folder import check_sweep_folders, explain_folder_error
from kinopoisk_ft.tracking.base import Tracker
from kinopoisk_ft.tracking.offline import close_killed
from kinopoisk_ft.training.distributed import torchrun

log = logging.getLogger(__name__)

PARENT = "parent.json"
# A skipped job has the id of the identical finished run in this tag.
SAME_AS = "kinopoisk_ft.same_as"


def notes_folder(sweep_dir: Path) -> Path:
    """Return the folder with the parent's id and the outcome of each job."""
    return sweep_dir / "jobs"


def read_parent(sweep_dir: Path) -> str | None:
    """Return the id of a sweep's parent run; None if its jobs are not tracked.

    Raises:
        UserError: the file with the id is missing or damaged.
    """
    file = notes_folder(sweep_dir) / PARENT
    try:
        parent = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"the parent run of the sweep is unknown: {error}",
            where=str(file),
            fix="start the sweep again: the same command with its output_dir",
        ) from error
    return None if parent is None else str(parent)


class ParentRun(Callback):
    """A Hydra callback that opens the parent before the first job.

    Hydra does not call back at the end of a sweep in which a job failed, so the command line closes
    the parent in `opened`.

    Args:
        by_sweeper: the sweeper opens the parent itself, after it has checked its config.
    """

    opened: ClassVar[ParentRun | None] = None

    def __init__(self, by_sweeper: bool = False) -> None:
        self.by_sweeper = by_sweeper
        self.sweep_dir = Path()
        self._tracker: Tracker | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the tracker: launchers send callbacks to workers, which only run jobs."""
        return {**self.__dict__, "_tracker": None}

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Check the sweep and open its parent."""
        try:
            if torchrun.world_size() > 1:
                raise UserError(
                    "torchrun starts the processes of one run, but this is a sweep of several runs",
                    fix="start each run with torchrun separately, or the sweep without torchrun",
                )
            check_sweep_folders(config)
            if not self.by_sweeper:
                self.open(config)
        except (UserError, OSError) as raised:
            error = explain_folder_error(raised) if isinstance(raised, OSError) else raised
            # Hydra would only warn, and then every job would fail for the same reason.
            print(f"error: {error}", file=sys.stderr)
            sys.exit(1)

    def open(self, config: DictConfig, resumed: bool = False) -> None:
        """Open the parent and save its id; a resumed sweep keeps its parent and outcomes.

        Raises:
            UserError: the store cannot be opened.
        """
        self.sweep_dir = Path(config.hydra.sweep.dir).absolute()
        notes = notes_folder(self.sweep_dir)
        parent = self._read_parent() if resumed else None
        for old in [] if resumed else notes.glob("[0-9]*.json"):
            old.unlink()
        write_atomically(notes / PARENT, json.dumps(self._start(config, parent)))
        ParentRun.opened = self

    def _read_parent(self) -> str | None:
        """Return the parent of the sweep that is resumed; None if its id is lost."""
        try:
            return read_parent(self.sweep_dir)
        except UserError as error:
            log.warning("a new parent run is created: %s", error.what)
            return None

    def _start(self, config: DictConfig, resume: str | None) -> str | None:
        """Start or resume the parent and return its id; None if jobs are not tracked.

        Earlier parents whose processes were killed are closed. Their unfinished jobs become
        children of this parent when they are resumed.
        """
        try:
            self._tracker = instantiate(config.tracking)
        except InstantiationException:
            # Each job checks its config and reports the error.
            return None
        choices = config.hydra.runtime.choices
        name = next((str(choices[k]) for k in ("sweep", "experiment") if choices.get(k)), "sweep")
        tags = {"kinopoisk_ft.kind": "sweep", "overrides": " ".join(config.hydra.overrides.task)}
        close_killed(self._tracker, self.sweep_dir, resume)
        return self._tracker.start(name, {}, tags, resume=resume, folder=self.sweep_dir) or None

    def tags(self, values: dict[str, str]) -> None:
        """Tag the parent."""
        if self._tracker is not None:
            self._tracker.tags(values)

    def artifact(self, file: Path) -> None:
        """Record a file of the sweep's folder with the parent."""
        if self._tracker is not None:
            self._tracker.artifact(file)

    def close(self, status: str) -> None:
        """End the parent; FAILED if a job failed, because its comparison is incomplete."""
        if self._tracker is not None:
            self._tracker.finish(status)
        ParentRun.opened = None
