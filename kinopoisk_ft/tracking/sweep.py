"""One parent run for a sweep: its jobs find its id in the sweep's folder, whoever runs them."""

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
from kinopoisk_ft.files import write_whole
from kinopoisk_ft.run_folder import check_sweep_folders, folder_refused
from kinopoisk_ft.tracking.base import Tracker
from kinopoisk_ft.tracking.offline import close_killed
from kinopoisk_ft.training.distributed import torchrun

log = logging.getLogger(__name__)

PARENT = "parent.json"
SAME_AS = "kinopoisk_ft.same_as"  # of a skipped job: the finished run that is identical


def notes_folder(sweep_dir: Path) -> Path:
    """Return where a sweep keeps the parent's id and how its jobs ended."""
    return sweep_dir / "jobs"


def parent_of(sweep_dir: Path) -> str | None:
    """Return the id of a sweep's parent run, None where jobs are not tracked.

    Raises:
        UserError: the sweep's folder does not tell.
    """
    file = notes_folder(sweep_dir) / PARENT
    try:
        parent = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"the sweep's parent run is not known: {error}",
            where=str(file),
            fix="start the sweep again: the same command with its output_dir",
        ) from error
    return None if parent is None else str(parent)


class ParentRun(Callback):
    """A Hydra callback that opens the parent before the first job.

    Hydra tells a callback of a sweep's end only if no job failed, so the command line closes what
    `opened` names.

    Args:
        by_sweeper: the sweeper opens a parent itself, once it has found nothing wrong.
    """

    opened: ClassVar[ParentRun | None] = None

    def __init__(self, by_sweeper: bool = False) -> None:
        self.by_sweeper = by_sweeper
        self.sweep_dir = Path()
        self._tracker: Tracker | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the tracker: launchers hand callbacks to workers, which only run jobs."""
        return {**self.__dict__, "_tracker": None}

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Open the parent, tagged with what was asked for."""
        try:
            if torchrun.world_size() > 1:
                raise UserError(
                    "torchrun starts the processes of one run, and this is a sweep of several",
                    fix="start each run with torchrun of its own, or the sweep without it",
                )
            check_sweep_folders(config)
            if not self.by_sweeper:
                self.open(config)
        except (UserError, OSError) as raised:
            error = folder_refused(raised) if isinstance(raised, OSError) else raised
            # Hydra would make a warning of it, and each job would fail for the same reason.
            print(f"error: {error}", file=sys.stderr)
            sys.exit(1)

    def open(self, config: DictConfig, goes_on: bool = False) -> None:
        """Open the parent, of a sweep that goes on the one it had, and forget how jobs ended.

        Raises:
            UserError: the store cannot be opened.
        """
        self.sweep_dir = Path(config.hydra.sweep.dir).absolute()
        notes = notes_folder(self.sweep_dir)
        kept = self._kept() if goes_on else None
        for old in [] if goes_on else notes.glob("[0-9]*.json"):
            old.unlink()
        write_whole(notes / PARENT, json.dumps(self._open(config, kept)))
        ParentRun.opened = self

    def _kept(self) -> str | None:
        """Return the parent that the sweep's folder names; None where it names none."""
        try:
            return parent_of(self.sweep_dir)
        except UserError as error:
            log.warning("a new parent is opened: %s", error.what)
            return None

    def _open(self, config: DictConfig, kept: str | None) -> str | None:
        """Return the parent's id; None where jobs are not tracked.

        Parents in the folder whose processes were killed are closed: their unfinished jobs become
        children of this one as they go on.
        """
        try:
            self._tracker = instantiate(config.tracking)
        except InstantiationException:
            return None  # each job checks its config and says what is wrong
        choices = config.hydra.runtime.choices
        name = next((str(choices[k]) for k in ("sweep", "experiment") if choices.get(k)), "sweep")
        tags = {"kinopoisk_ft.kind": "sweep", "overrides": " ".join(config.hydra.overrides.task)}
        close_killed(self._tracker, self.sweep_dir, kept)
        return self._tracker.start(name, {}, tags, kept=kept, folder=self.sweep_dir) or None

    def tags(self, values: dict[str, str]) -> None:
        """Tag the parent."""
        if self._tracker is not None:
            self._tracker.tags(values)

    def artifact(self, file: Path) -> None:
        """Keep a file of the sweep's folder with the parent."""
        if self._tracker is not None:
            self._tracker.artifact(file)

    def close(self, status: str) -> None:
        """Close the parent: FAILED if a job failed, since its comparison has a hole."""
        if self._tracker is not None:
            self._tracker.finish(status)
        ParentRun.opened = None
