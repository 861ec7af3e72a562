"""One parent run for a sweep: its jobs find its id in their environment."""

from __future__ import annotations

import os
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig


class ParentRun(Callback):
    """A Hydra callback that opens the parent before the first job and closes it after the last."""

    def __init__(self) -> None:
        self._failed = 0

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Open the parent, tagged with what was asked for, if the jobs are tracked by MLflow."""
        if "MlflowTracker" not in config.tracking._target_:
            return
        from kinopoisk_ft.tracking.mlflow import PARENT, open_experiment

        tracking = config.tracking
        self._client, experiment = open_experiment(
            tracking.uri, tracking.experiment, tracking.artifacts
        )
        choices = config.hydra.runtime.choices
        name = next((str(choices[k]) for k in ("sweep", "experiment") if choices.get(k)), "sweep")
        tags = {"kinopoisk_ft.kind": "sweep", "overrides": " ".join(config.hydra.overrides.task)}
        run = self._client.create_run(experiment, tags=tags, run_name=name)
        os.environ[PARENT] = self._parent = run.info.run_id

    def on_job_end(self, config: DictConfig, job_return: Any, **kwargs: Any) -> None:
        """Count failures of jobs that run in this process."""
        self._failed += job_return.status.name != "COMPLETED"

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Close the parent: FAILED if a job failed, since its comparison has a hole."""
        from kinopoisk_ft.tracking.mlflow import PARENT

        if os.environ.pop(PARENT, None):
            status = "FAILED" if self._failed else "FINISHED"
            self._client.set_terminated(self._parent, status)
