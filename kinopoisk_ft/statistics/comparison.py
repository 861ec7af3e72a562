"""Compare approaches with confidence intervals, pairwise tests, slices and reliability bins."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from kinopoisk_ft.statistics.bootstrap import Interval, estimate_mean, resample_approaches
from kinopoisk_ft.statistics.calibration import Bin, before_and_after
from kinopoisk_ft.statistics.metrics import COUNTED
from kinopoisk_ft.statistics.pairs import Pair, difference, holm, mcnemar_of
from kinopoisk_ft.statistics.predictions import Predictions
from kinopoisk_ft.statistics.seeds import RunScores
from kinopoisk_ft.statistics.slices import SLICED_BY, Slice, slices


@dataclass(frozen=True, kw_only=True)
class Approach:
    """The runs of one approach.

    Args:
        runs: the predictions of each run, or None if the run did not record predictions.
        temperatures: the fitted temperature of each run, or None if the run has none. Reliability
            bins are computed only if all runs have a temperature.
    """

    name: str
    seeds: tuple[str, ...]
    runs: tuple[Predictions | None, ...]
    temperatures: tuple[float | None, ...] = ()


@dataclass(frozen=True)
class Problem:
    """A reason why an approach is left out, or why two approaches cannot be paired by review.

    There are three kinds:

    - "no_predictions": some runs of an approach have no predictions. The approach is left out.
    - "own_mismatch": the runs of an approach have different test sets. The approach is left out.
    - "unpaired": two approaches have different test sets. They are compared as independent samples,
      or not at all if the classes differ.

    Args:
        names: the names of the one or two approaches.
        detail: for "no_predictions", the seeds without predictions. Otherwise, what differs between
            the test sets: "rows", "labels" or "classes".
    """

    kind: Literal["no_predictions", "own_mismatch", "unpaired"]
    names: tuple[str, ...]
    detail: str


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A comparison of several approaches.

    Args:
        means: means over seeds with intervals, by approach name and metric name.
        slices: scores on slices of the test set, such as long reviews, by approach name.
        reliability: bins before and after temperature scaling, by approach name.
        absent_slices: columns that could not be used for slices, because no run recorded them.
        groups: the number of groups, such as films, in the test set. There are several numbers if
            approaches have different test sets.
    """

    means: dict[str, dict[str, Interval]] = field(default_factory=dict)
    pairs: tuple[Pair, ...] = ()
    slices: dict[str, list[Slice]] = field(default_factory=dict)
    reliability: dict[str, tuple[list[Bin], list[Bin]]] = field(default_factory=dict)
    absent_slices: tuple[str, ...] = ()
    groups: tuple[int, ...] = ()
    problems: tuple[Problem, ...] = ()

    def pair(self, a: str, b: str) -> Pair | None:
        """Return the comparison of two approaches, or None if there is none."""
        for pair in self.pairs:
            if (pair.a, pair.b) == (a, b):
                return pair
            if (pair.a, pair.b) == (b, a):
                return pair.reversed()
        return None


@dataclass
class _Scored:
    """An approach, its runs, and their scores by metric."""

    approach: Approach
    runs: list[Predictions]
    scores: dict[str, RunScores] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.approach.name

    @property
    def correct(self) -> np.ndarray:
        # (runs, N), bool.
        return np.stack([run.predicted == run.labels for run in self.runs])

    def bin_confidences(self) -> tuple[list[Bin], list[Bin]] | None:
        temperatures = [t for t in self.approach.temperatures if t is not None]
        complete = len(temperatures) == len(self.runs)
        return before_and_after(self.runs, temperatures) if complete else None


def compare(approaches: list[Approach]) -> Comparison:
    """Compare all pairs of approaches.

    The runs of two approaches are paired by seed if both approaches have the same test reviews and
    the same seeds, with one run per seed. The `problems` of the result list the approaches
    that were left out, and the pairs that were compared as independent samples or not at all.
    """
    usable, problems = _find_usable(approaches)
    _score(usable)
    pairs = []
    for a, b in itertools.combinations(usable, 2):
        reason = a.runs[0].mismatch(b.runs[0])
        if reason:
            problems.append(Problem("unpaired", (a.name, b.name), reason))
        # Scores for different classes are not the same quantity, so their difference means nothing.
        if reason != "classes":
            pairs.append(_pair(a, b, paired=reason is None))
    groups = [groups for one in usable if (groups := one.runs[0].groups) is not None]
    known = {by for one in usable for by in one.runs[0].facts}
    return Comparison(
        means={
            one.name: {m.name: estimate_mean(one.scores[m.name], m.lowest) for m in COUNTED}
            for one in usable
        },
        pairs=tuple(holm(pairs)),
        slices={one.name: slices(one.runs) for one in usable},
        reliability={one.name: bins for one in usable if (bins := one.bin_confidences())},
        absent_slices=tuple(by for by in SLICED_BY if usable and by not in known),
        groups=tuple(sorted({len(np.unique(numbers)) for numbers in groups})),
        problems=tuple(problems),
    )


def _find_usable(approaches: list[Approach]) -> tuple[list[_Scored], list[Problem]]:
    usable, problems = [], []
    for one in approaches:
        lacking = [seed for seed, run in zip(one.seeds, one.runs, strict=True) if run is None]
        runs = [run for run in one.runs if run is not None]
        reasons = [reason for run in runs if (reason := runs[0].mismatch(run))]
        if lacking:
            problems.append(Problem("no_predictions", (one.name,), ", ".join(lacking)))
        elif reasons:
            problems.append(Problem("own_mismatch", (one.name,), reasons[0]))
        else:
            usable.append(_Scored(one, runs))
    return usable, problems


def _score(approaches: list[_Scored]) -> None:
    # Approaches with the same test reviews share resamples, so that differences are paired.
    groups: list[list[_Scored]] = []
    for one in approaches:
        group = next((g for g in groups if not g[0].runs[0].mismatch(one.runs[0])), None)
        if group is None:
            groups.append([one])
        else:
            group.append(one)
    # Each group has another seed, so that the resamples of different test sets are independent.
    for seed, group in enumerate(groups):
        found = resample_approaches([one.runs for one in group], seed)
        for one, scores in zip(group, found, strict=True):
            one.scores = scores


def _pair(a: _Scored, b: _Scored, *, paired: bool) -> Pair:
    seeds, others = a.approach.seeds, b.approach.seeds
    # Runs can be paired only if each seed occurs exactly once in both approaches.
    same = paired and set(seeds) == set(others) and len(seeds) == len(others) == len(set(seeds))
    # The positions of b's runs, in the order of a's seeds.
    order = [others.index(seed) for seed in seeds] if same else list(range(len(b.runs)))
    differences = {
        metric: difference(scores, b.scores[metric].select(order), same_seeds=same)
        for metric, scores in a.scores.items()
    }
    test = None
    if paired:
        groups = a.runs[0].groups
        test = mcnemar_of(a.correct, b.correct[order], same_seeds=same, groups=groups)
    return Pair(
        a=a.name,
        b=b.name,
        paired=paired,
        same_seeds=same,
        measured=len(a.runs) > 1 and len(b.runs) > 1,
        reviews=max(len(one.runs[0].rows) for one in (a, b)),
        differences=differences,
        mcnemar=test,
    )
