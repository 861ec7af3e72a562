"""Report a trial of a search to its study: tag its run, and prune it if it is hopeless."""

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


class Pruned(Exception):  # noqa: N818 - pruning is not an error
    """Raised to end a trial, because other trials were better after the same evaluation."""

    def __init__(self, message: str, run_id: str) -> None:
        super().__init__(message)
        self.run_id = run_id


def watch_trial(tracker: Tracker, job: Job | None) -> Tracker:
    """Return the tracker, or for a trial of a search one that also reports scores to the study."""
    if job is None or job.pruner is None:
        return tracker
    require_optuna()
    study = open_study(job.sweep_dir, job.pruner)
    return cast(Tracker, TrialTracker(tracker, study, job.number))


class TrialTracker:
    """A tracker whose `metrics` raises Pruned if a validation score is hopeless.

    All other methods are those of the wrapped tracker.
    """

    def __init__(self, tracker: Tracker, study: Study, number: int) -> None:
        import optuna

        self.tracker, self.number = tracker, number
        self.metric = f"val_{study.user_attrs[METRIC]}"
        # Another process can reach a running trial only by its id.
        self.trial = optuna.Trial(study, study.trials[number]._trial_id)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tracker, name)

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
        """Record values, and report the validation score to the study if it is among them.

        Raises:
            Pruned: the trial is hopeless; its run is tagged as pruned.
        """
        self.tracker.metrics(values, step)
        if self.metric not in values:
            return
        # Trials with other batch sizes evaluate at other steps, so evaluations are counted.
        steps = self.trial.user_attrs.get(STEPS, [])
        if step in steps:
            # The score was reported before the trial was interrupted.
            return
        self.trial.report(values[self.metric], len(steps))
        self.trial.set_user_attr(STEPS, [*steps, step])
        if self.trial.should_prune():
            message = f"{self.metric} {values[self.metric]:.4f} at evaluation {len(steps) + 1}"
            log.info("pruned at step %d: %s is behind other trials", step, message)
            # Any kind but "train" keeps reports and later sweeps from counting it as finished.
            self.tracker.tags({"kinopoisk_ft.kind": "pruned", "pruned": message})
            raise Pruned(message, self.run_id)
