"""Create and load the Optuna study of a search.

The study is a journal file in the folder of the sweep. A trial has the same number as its job, and
this number is the name of the job's output folder. A resumed trial therefore finds its checkpoints.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from hydra.utils import instantiate
from omegaconf import DictConfig

from kinopoisk_ft.config.prepared import flatten, list_differences
from kinopoisk_ft.errors import UserError, import_extra

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

JOURNAL = "search.journal"
METRIC, ABOUT, RETRY_OF = "metric", "about", "retry_of"
START_OVER = "choose another output_dir, or start over in this one with rerun=true"


def require_optuna() -> None:
    """Raise UserError if Optuna is not installed."""
    optuna = import_extra("optuna", "search")
    optuna.logging.set_verbosity(optuna.logging.WARNING)


def open_study(
    folder: Path,
    pruner: DictConfig | None,
    direction: Literal["minimize", "maximize"] | None = None,
) -> Study:
    """Open the study in a folder.

    Args:
        pruner: the Hydra config of an Optuna pruner; None for no pruning.
        direction: whether a new study minimizes or maximizes the score. If None, the study must
            already exist.

    Raises:
        UserError: the journal cannot be read.
    """
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

    file = str(folder / JOURNAL)
    try:
        # Only the sweeper calls this with a direction, before any trial can write to the journal.
        if direction is not None:
            _remove_incomplete_line(folder / JOURNAL)
        storage = JournalStorage(JournalFileBackend(file, JournalFileOpenLock(file)))
        # `TrialQueue` sets its own sampler, and the process of a trial does not need one.
        how: dict[str, Any] = {"storage": storage, "study_name": "search"}
        # Without NopPruner, Optuna would prune with its default, MedianPruner.
        how["pruner"] = instantiate(pruner) or optuna.pruners.NopPruner()
        how["sampler"] = optuna.samplers.RandomSampler()
        if direction is None:
            return optuna.load_study(**how)
        return optuna.create_study(**how, direction=direction, load_if_exists=True)
    except (ValueError, KeyError, OSError) as error:
        raise UserError(
            f"the journal of the search cannot be read: {error}", where=file, fix=START_OVER
        ) from error


def _remove_incomplete_line(journal: Path) -> None:
    # A crash may leave a truncated last line, and Optuna would append to this line.
    if journal.is_file():
        os.truncate(journal, journal.read_bytes().rfind(b"\n") + 1)


def check_study(study: Study, about: dict[str, Any]) -> None:
    """Check that the earlier trials of a study used the settings of the current search.

    In a new study, the settings of the current search are saved for later checks.

    Args:
        about: settings of the current search with the keys config, space and identity. The identity
            is a digest that also depends on the code, packages, data and hardware.

    Raises:
        UserError: earlier trials used another config, space, code, data or hardware.
    """
    # The study stores JSON, in which tuples become lists, so `about` is compared in the same form.
    now = json.loads(json.dumps(about))
    kept = study.user_attrs.get(ABOUT)
    if kept is None:
        study.set_user_attr(ABOUT, now)
        return
    before, after = flatten(kept), flatten(now)
    # The identity is a digest, so it does not show what has changed.
    is_same = before.pop("identity") == after.pop("identity")
    differing = list_differences(before, after)
    if not (differing or is_same):
        differing = ["code, data, packages or hardware have changed"]
    if differing:
        raise UserError(
            "output_dir contains a search with different settings:\n    "
            + "\n    ".join(differing),
            fix=START_OVER,
        )


class TrialQueue:
    """The trials of a search that are still to run; interrupted trials come first.

    The sampler gets a new seed for each trial, which depends on the trial's number. If a search is
    interrupted and resumed, it therefore runs the same trials as without the interruption.

    Args:
        sampler: the Hydra config of an Optuna sampler with the argument `seed`.
        first: parameters of the first trials. The sampler chooses the values of missing parameters.
    """

    def __init__(
        self,
        study: Study,
        space: dict[str, BaseDistribution],
        sampler: DictConfig,
        seed: int,
        first: list[dict[str, Any]],
    ) -> None:
        self.study, self.space, self.sampler, self.seed = study, space, sampler, seed
        self.first = first
        self.retried = self._enqueue_failed()

    def iter_batches(self, n_trials: int, size: int) -> Iterator[list[FrozenTrial]]:
        """Yield batches of trials with consecutive numbers, to run in parallel.

        A failed trial is not replaced, because its cause may make all trials fail. It runs again
        when the command is repeated.

        Args:
            n_trials: total number of trials, including finished and pruned trials of earlier
                commands, but not their failed trials.
        """
        waiting = [trial for trial in self.study.trials if trial.state.name == "RUNNING"]
        left = n_trials - self.count_finished()
        while left > 0:
            batch: list[FrozenTrial] = []
            while len(batch) < min(size, left):
                trial = waiting.pop(0) if waiting else self._ask()
                # Launchers number jobs consecutively, and a job has the number of its trial.
                if batch and trial.number != batch[-1].number + 1:
                    waiting.insert(0, trial)
                    break
                batch.append(trial)
            left -= len(batch)
            yield batch

    def count_finished(self) -> int:
        """Return the number of finished or pruned trials."""
        return sum(trial.state.name in ("COMPLETE", "PRUNED") for trial in self.study.trials)

    def tell(self, number: int, status: str, value: float | None) -> None:
        """Report to the study how a trial ended."""
        from optuna.trial import TrialState

        if status == "pruned":
            self.study.tell(number, state=TrialState.PRUNED)
        # Optuna does not accept NaN as the value of a finished trial.
        elif value is None or math.isnan(value):
            self.study.tell(number, state=TrialState.FAIL)
        else:
            self.study.tell(number, value)

    def find_best(self) -> FrozenTrial | None:
        """Return the finished trial with the best validation score; None if none has finished."""
        # `best_trial` raises an error if no trial is complete.
        finished = any(trial.state.name == "COMPLETE" for trial in self.study.trials)
        return self.study.best_trial if finished else None

    def _ask(self) -> FrozenTrial:
        trials = self.study.trials
        waiting = [trial.number for trial in trials if trial.state.name == "WAITING"]
        number = waiting[0] if waiting else len(trials)
        # Trials that repeat a failed trial are not counted.
        fresh = sum(RETRY_OF not in trial.user_attrs for trial in trials)
        if not waiting and fresh < len(self.first):
            self.study.enqueue_trial(self.first[fresh])
        # SeedSequence mixes both numbers, so adjacent seeds and trials get unrelated 32-bit seeds.
        seed = int(np.random.SeedSequence([self.seed, number]).generate_state(1)[0])
        self.study.sampler = instantiate(self.sampler, seed=seed)
        asked = self.study.ask(self.space)
        return self.study.trials[asked.number]

    def _enqueue_failed(self) -> set[int]:
        from optuna.trial import TrialState

        for trial in self.study.trials:
            # The parameters are incomplete if the search was stopped while they were suggested.
            if trial.state == TrialState.RUNNING and set(trial.params) != set(self.space):
                self.study.tell(trial.number, state=TrialState.FAIL)
        trials = self.study.trials
        # The trials that an earlier command has already repeated.
        again = {trial.user_attrs.get(RETRY_OF) for trial in trials}
        failed = [t for t in trials if t.state == TrialState.FAIL and t.number not in again]
        for trial in failed:
            self.study.enqueue_trial(trial.params, user_attrs={RETRY_OF: trial.number})
        return {trial.number for trial in failed}
