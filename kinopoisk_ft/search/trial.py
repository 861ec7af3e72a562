"""Report the validation scores of a trial to the study, and stop unpromising trials."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, cast

from kinopoisk_ft.config.prepared import Job
from kinopoisk_ft.search.study import METRIC, open_study, require_optuna
from kinopoisk_ft.tracking.base import Tracker

if TYPE_CHECKING:
    from optuna import Study

log = logging.getLogger(__name__)

# Attribute of a trial that lists the optimizer steps whose scores were reported.
STEPS = "steps"


class Pruned(Exception):  # noqa: N818 - pruning is not an error
    """Raised when the pruner stops a trial, because other trials had better scores."""

    def __init__(self, message: str, run_id: str) -> None:
        super().__init__(message)
        self.run_id = run_id


def watch_trial(tracker: Tracker, job: Job | None) -> Tracker:
    """Wrap the tracker in a `TrialTracker` if the job has a pruner."""
    if job is None or job.pruner is None:
        return tracker
    require_optuna()
    study = open_study(job.sweep_dir, job.pruner)
    return cast(Tracker, TrialTracker(tracker, study, job.number))


class TrialTracker:
    """A tracker that reports validation scores to the study of a search.

    All methods except `start` and `metrics` are forwarded to the wrapped tracker.
    """

    def __init__(self, tracker: Tracker, study: Study, number: int) -> None:
        import optuna

        self.tracker, self.number = tracker, number
        self.metric = f"val_{study.user_attrs[METRIC]}"
        # The trial was created by another process, so it can only be loaded by its id.
        self.trial = optuna.Trial(study, study.trials[number]._trial_id)

    def __getattr__(self, name: str) -> Any:
        # Python calls this method only for attributes that this class does not define.
        return getattr(self.tracker, name)

    def start(
        self, name: str, config: dict[str, Any], tags: dict[str, str], *args: Any, **options: Any
    ) -> str:
        """Start a run with the number and the parameters of the trial as tags."""
        mine = {f"trial.{key}": str(value) for key, value in self.trial.params.items()}
        mine["trial"] = str(self.number)
        name = f"trial {self.number}: {name}"
        self.run_id = self.tracker.start(name, config, tags | mine, *args, **options)
        return self.run_id

    def metrics(self, values: dict[str, float], step: int) -> None:
        """Record metric values, and report the validation score to the study.

        Raises:
            Pruned: the pruner stops this trial.
        """
        self.tracker.metrics(values, step)
        if self.metric not in values:
            return
        # Report the number of the evaluation, because its step depends on the batch size.
        steps = self.trial.user_attrs.get(STEPS, [])
        if step in steps:
            # This score was already reported before the trial was interrupted.
            return
        # If the process dies between these two calls, Optuna ignores the repeated report.
        self.trial.report(values[self.metric], len(steps))
        self.trial.set_user_attr(STEPS, [*steps, step])
        if self.trial.should_prune():
            message = f"{self.metric} {values[self.metric]:.4f} at evaluation {len(steps) + 1}"
            log.info("pruned at step %d: %s is behind other trials", step, message)
            # Reports and later sweeps only use finished runs of the kind "train".
            self.tracker.tags({"kinopoisk_ft.kind": "pruned", "pruned": message})
            raise Pruned(message, self.run_id)
