"""One parent run for a sweep: its jobs find its id in the sweep's folder, whoever runs them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, ClassVar

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from kinopoisk_ft import ranks
from kinopoisk_ft.errors import UserError

SAME_AS = "kinopoisk_ft.same_as"  # of a skipped job: the finished run that is identical


def notes_folder(sweep_dir: Path) -> Path:
    """Return where a sweep keeps the parent's id and how its jobs ended."""
    return sweep_dir / "jobs"


def parent_of(sweep_dir: Path) -> str | None:
    """Return the id of a sweep's parent run, None where it has none."""
    parent: str | None = json.loads((notes_folder(sweep_dir) / "parent.json").read_text())
    return parent


class ParentRun(Callback):
    """A Hydra callback that opens the parent before the first job.

    Hydra tells a callback of a sweep's end only if no job failed, so the command line closes what
    `opened` names.
    """

    opened: ClassVar[ParentRun | None] = None

    def __init__(self) -> None:
        self.sweep_dir = Path()
        self._client: Any = None
        self._parent: str | None = None

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Open the parent, tagged with what was asked for, if the jobs are tracked by MLflow."""
        if ranks.size() > 1:
            error = UserError(
                "torchrun starts the processes of one run, and this is a sweep of several",
                fix="start each run with torchrun of its own, or the sweep without it",
            )
            print(f"error: {error}", file=sys.stderr)
            sys.exit(1)
        self.sweep_dir = Path(config.hydra.sweep.dir).absolute()
        notes = notes_folder(self.sweep_dir)
        notes.mkdir(parents=True, exist_ok=True)
        for old in notes.glob("[0-9]*.json"):
            old.unlink()
        if "MlflowTracker" in config.tracking._target_:
            try:
                self._open(config)
            except UserError as error:
                # Hydra would make a warning of it, and each job would fail for the same reason.
                print(f"error: {error}", file=sys.stderr)
                sys.exit(1)
        (notes / "parent.json").write_text(json.dumps(self._parent))
        ParentRun.opened = self

    def _open(self, config: DictConfig) -> None:
        from kinopoisk_ft.tracking.mlflow import open_experiment

        tracking = config.tracking
        self._client, experiment = open_experiment(
            tracking.uri, tracking.experiment, tracking.artifacts
        )
        choices = config.hydra.runtime.choices
        name = next((str(choices[k]) for k in ("sweep", "experiment") if choices.get(k)), "sweep")
        tags = {"kinopoisk_ft.kind": "sweep", "overrides": " ".join(config.hydra.overrides.task)}
        run = self._client.create_run(experiment, tags=tags, run_name=name)
        self._parent = run.info.run_id

    def close(self, status: str) -> None:
        """Close the parent: FAILED if a job failed, since its comparison has a hole."""
        if self._parent is not None:
            self._client.set_terminated(self._parent, status)
        ParentRun.opened = None
