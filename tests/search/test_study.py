"""Test the study of a search: evaluations are reported once, and a hopeless trial is pruned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
import pytest
from omegaconf import DictConfig

from kinopoisk_ft.errors import UserError
from kinopoisk_ft.search.study import TrialQueue, open_study
from kinopoisk_ft.search.trial import Pruned, TrialTracker
from kinopoisk_ft.tracking.base import Tracker


def test_evaluations_are_counted_and_reported_once(tmp_path: Path) -> None:
    """Evaluations are numbered, because trials with different batch sizes have different steps."""
    pruner = DictConfig({"_target_": "optuna.pruners.MedianPruner", "n_startup_trials": 1})
    study = open_study(tmp_path, pruner, "minimize")
    study.set_user_attr("metric", "loss")
    none: Any = Tracker(uri=None, experiment="")
    study.ask()
    first = TrialTracker(none, study, 0)
    for step in (10, 20, 20, 30):
        first.metrics({"val_loss": step / 10, "val_accuracy": 0.0}, step)
    first.metrics({"train_loss": 9.0}, 40)
    assert study.trials[0].intermediate_values == {0: 1.0, 1: 2.0, 2: 3.0}
    study.tell(0, 1.0)
    study.ask()
    second = TrialTracker(none, open_study(tmp_path, pruner), 1)
    second.start("", {}, {"overrides": ""}, folder=Path())
    second.metrics({"val_loss": 0.9}, 7)
    # The best value of this trial is still the better one.
    second.metrics({"val_loss": 4.0}, 14)
    study.tell(1, 0.9)
    study.ask()
    third = TrialTracker(none, study, 2)
    third.start("", {}, {"overrides": ""}, folder=Path())
    with pytest.raises(Pruned, match="evaluation 1"):
        third.metrics({"val_loss": 2.0}, 3)


def test_no_pruner_prunes_nothing(tmp_path: Path) -> None:
    study = open_study(tmp_path, None, "maximize")
    assert isinstance(study.pruner, optuna.pruners.NopPruner)


def test_an_invalid_journal_is_refused(tmp_path: Path) -> None:
    (tmp_path / "search.journal").write_text("no\nno\n")
    with pytest.raises(UserError, match="cannot be read"):
        open_study(tmp_path, None)


def test_failed_trials_are_not_replaced_but_repeated_by_the_next_command(tmp_path: Path) -> None:
    """A trial that always fails must not run for ever."""
    space: Any = {"lr": optuna.distributions.FloatDistribution(0.0, 1.0)}
    sampler = DictConfig({"_target_": "optuna.samplers.RandomSampler"})
    # Trial 0 and its first repetition fail. Failed and pruned trials have no score.
    ends = {0: ("failed", None), 1: ("pruned", None), 4: ("failed", None)}
    seen: list[list[int]] = []
    for _ in range(3):
        queue = TrialQueue(open_study(tmp_path, None, "maximize"), space, sampler, 0, [])
        batches = queue.iter_batches(n_trials=4, size=3)
        seen.append([])
        for trial in (trial for batch in batches for trial in batch):
            queue.tell(trial.number, *ends.get(trial.number, ("done", 0.5)))
            seen[-1].append(trial.number)
    assert seen == [[0, 1, 2, 3], [4], [5]]
    values = [trial.params["lr"] for trial in queue.study.trials]
    assert values[0] == values[4] == values[5]
    assert values[0] not in values[1:4]
