"""A job that is a trial of a search: tagged as such, judged, and ended where there is no hope."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from kinopoisk_ft.config.prepared import Job
from kinopoisk_ft.search.study import METRIC, open_study, require_optuna
from kinopoisk_ft.tracking.base import Tracker

if TYPE_CHECKING:
    from optuna import Study

log = logging.getLogger(__name__)

STEPS = "steps"


class Pruned(Exception):  # noqa: N818 - it is no error
    """Other trials were better by the same evaluation: this one need not come to its end."""

    def __init__(self, told: str, run_id: str) -> None:
        super().__init__(told)
        self.run_id = run_id


def watch_trial(tracker: Tracker, job: Job | None) -> Tracker:
    """Return the tracker; for a trial of a search, one that also judges it by what it records."""
    if job is None or job.pruner is None:
        return tracker
    require_optuna()
    study = open_study(job.sweep_dir, job.pruner)
    return cast(Tracker, TrialTracker(tracker, study, job.number))


class TrialTracker:
    """A tracker whose `metrics` raise Pruned after a validation that leaves no hope.

    All its other verbs are the tracker's own.
    """

    def __init__(self, tracker: Tracker, study: Study, number: int) -> None:
        import optuna

        self.tracker, self.number = tracker, number
        self.metric = f"val_{study.user_attrs[METRIC]}"
        # A running trial is reached from another process by its id alone.
        self.trial = optuna.Trial(study, study.trials[number]._trial_id)

    def __getattr__(self, verb: str) -> Any:
        return getattr(self.tracker, verb)

    def start(
        self,
        name: str,
        config: dict[str, Any],
        tags: dict[str, str],
        parent: str | None = None,
        kept: str | None = None,
        *,
        folder: Path,
    ) -> str:
        """Open the run, tagged with the trial's number and parameters."""
        mine = {f"trial.{key}": str(value) for key, value in self.trial.params.items()}
        mine["trial"] = str(self.number)
        name = f"trial {self.number}: {name}"
        self.run_id = self.tracker.start(name, config, tags | mine, parent, kept, folder=folder)
        return self.run_id

    def metrics(self, values: dict[str, float], step: int) -> None:
        """Record values; judge by the validation score, if it is among them.

        Raises:
            Pruned: the trial is hopeless; its run is tagged as pruned.
        """
        self.tracker.metrics(values, step)
        if self.metric not in values:
            return
        # Trials with other batch sizes evaluate at other steps: evaluations are counted instead.
        steps = self.trial.user_attrs.get(STEPS, [])
        if step in steps:
            return  # it was told before a stop
        self.trial.report(values[self.metric], len(steps))
        self.trial.set_user_attr(STEPS, [*steps, step])
        if self.trial.should_prune():
            told = f"{self.metric} {values[self.metric]:.4f} at evaluation {len(steps) + 1}"
            log.info("pruned at step %d: %s is behind other trials", step, told)
            # Another kind than "train": reports and later sweeps take it for no finished run.
            self.tracker.tags({"kinopoisk_ft.kind": "pruned", "pruned": told})
            raise Pruned(told, self.run_id)
