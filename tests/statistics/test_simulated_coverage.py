"""Test intervals and tests on simulated results with a known truth: coverage, errors, power.

Each review has a difficulty, and each seed a skill near that of its approach. Both determine how
likely an answer is right. The truth is the score over all possible reviews and seeds.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest
from scipy.special import expit

from kinopoisk_ft.statistics.bootstrap import percentiles, resample
from kinopoisk_ft.statistics.metrics import HEADLINE, count_confusion, scores, shown_in
from kinopoisk_ft.statistics.pairs import Difference, Pair, difference, holm, mcnemar_of
from kinopoisk_ft.statistics.seeds import RunScores, total

METRICS = tuple(metric.name for metric in shown_in("differences"))

REVIEWS = 1000
RESAMPLES = 1000
POSITIVE = 0.8
# With this skill, nine of ten answers are right.
SKILL = 4.0


@dataclass(frozen=True)
class World:
    """The skill of each approach, and the standard deviation of skill over seeds (log odds)."""

    skills: tuple[float, ...]
    seeds: int = 3
    spread: float = 0.3
    # Whether a seed changes the skill of all approaches equally.
    shared: bool = False

    def answers(self, rng: np.random.Generator, reviews: int) -> tuple[np.ndarray, np.ndarray]:
        """Return labels (N,) and predicted (approaches, seeds, N)."""
        labels = (rng.random(reviews) < POSITIVE).astype(np.int64)
        difficulty = rng.normal(0, 2, reviews) - labels
        luck = rng.normal(0, self.spread, (len(self.skills), self.seeds))
        if self.shared:
            luck[:] = luck[0]
        skill = np.array(self.skills)[:, None] - 1 + luck
        right = rng.random((*luck.shape, reviews)) < expit(skill[..., None] - difficulty)
        return labels, np.where(right, labels, 1 - labels)

    @functools.cached_property
    def truth(self) -> dict[str, np.ndarray]:
        """Compute each approach's metrics over all possible reviews and seeds, by quadrature."""
        points, weights = np.polynomial.hermite_e.hermegauss(60)
        weights = weights / weights.sum()
        # Shape: (approaches, points of the quadrature over seeds).
        skill = np.array(self.skills)[:, None] - 1 + self.spread * points
        margin = skill[..., None] - 2 * points
        bad, good = (expit(margin + k) @ weights for k in (0, 1))
        cells = [(1 - POSITIVE) * bad, (1 - POSITIVE) * (1 - bad)]
        cells += [POSITIVE * (1 - good), POSITIVE * good]
        found = scores(np.stack(cells, axis=-1).reshape(*skill.shape, 2, 2))
        return {metric: values @ weights for metric, values in found.items()}

    def draws(self, times: int) -> Iterator[tuple[dict[str, list[RunScores]], np.ndarray]]:
        """Draw data; yield the seeds of each approach by metric, and which answers are right."""
        for number in range(times):
            labels, predicted = self.answers(np.random.default_rng((7, number)), REVIEWS)
            flat = predicted.reshape(-1, REVIEWS)
            scored = resample(labels, flat, 2, seed=number, resamples=RESAMPLES)
            n = self.seeds
            yield (
                {
                    metric: [scored[metric].select(slice(i, i + n)) for i in range(0, len(flat), n)]
                    for metric in METRICS
                },
                predicted == labels,
            )


def pair_of(
    world: World, found: dict[str, list[RunScores]], i: int, j: int, metric: str
) -> Difference:
    """Return the difference of two approaches in a metric."""
    same = world.shared or world.seeds == 1
    return difference(found[metric][i], found[metric][j], same_seeds=same)


def within(rate: float, times: int, low: float, high: float) -> bool:
    """Return whether a rate over `times` draws is within bounds, plus or minus its error."""
    error = 3 * math.sqrt(0.05 * 0.95 / times)
    return low - error <= rate <= high + error


WORLDS = {
    "seeds alike": World((SKILL, SKILL + 0.5), spread=0.0),
    "seeds": World((SKILL, SKILL + 0.5)),
    "loud seeds": World((SKILL, SKILL + 0.5), spread=0.5),
    "two loud seeds": World((SKILL, SKILL + 0.5), spread=0.5, seeds=2),
    "five shared seeds": World((SKILL, SKILL + 0.5), seeds=5, spread=0.5, shared=True),
    "one seed": World((SKILL, SKILL + 0.5), seeds=1, spread=0.0),
}


def check_coverage(world: World, times: int) -> None:
    pairs: dict[str, list[bool]] = {metric: [] for metric in METRICS}
    means: dict[str, list[bool]] = {metric: [] for metric in METRICS}
    for found, _ in world.draws(times):
        for metric in METRICS:
            a, b = world.truth[metric]
            ends = pair_of(world, found, 0, 1, metric)
            pairs[metric].append(ends.low <= a - b <= ends.high)
            alone = total([(1.0, found[metric][0])])
            mean = percentiles(alone.mean, alone.resampled)
            means[metric].append(mean.low <= a <= mean.high)
    for metric in METRICS:
        rates = np.mean(pairs[metric]), np.mean(means[metric])
        # With few seeds, intervals may be slightly too wide or too narrow.
        assert all(within(rate, times, 0.93, 0.98) for rate in rates), (metric, rates)


def check_coverage_of_films(films: int, times: int) -> None:
    """Draw films with numbers of reviews as unequal as in a real test split; check the intervals.

    The quartiles are 4, 9 and 33 reviews. Each film is easier or harder for each approach.
    """
    rng = np.random.default_rng(5)
    sizes = np.ceil(np.exp(rng.normal(2.2, 1.3, 4000))).astype(int)
    skills = np.array([[2.0], [1.5]]) + rng.normal(0, 0.7, (2, 4000))
    labels = [(rng.random(n) < 0.68).astype(np.int64) for n in sizes]
    predicted = [
        np.where(rng.random((2, len(true))) < expit(skill)[:, None], true, 1 - true)
        for true, skill in zip(labels, skills.T, strict=True)
    ]
    whole = scores(count_confusion(np.concatenate(labels), np.concatenate(predicted, axis=1), 2))
    truth = whole[HEADLINE][0] - whole[HEADLINE][1]
    covered = []
    for number in range(times):
        drawn = np.random.default_rng((6, number)).choice(4000, films)
        scored = resample(
            np.concatenate([labels[i] for i in drawn]),
            np.concatenate([predicted[i] for i in drawn], axis=1),
            2, groups=np.repeat(np.arange(films), sizes[drawn]), seed=number, resamples=RESAMPLES,
        )  # fmt: skip
        a, b = (scored[HEADLINE].select([i]) for i in (0, 1))
        found = difference(a, b, same_seeds=True)
        covered.append(found.low <= truth <= found.high)
    assert within(float(np.mean(covered)), times, 0.93, 0.97), np.mean(covered)


def test_intervals_of_thirty_unequal_films_cover_the_truth() -> None:
    check_coverage_of_films(30, 200)


@pytest.mark.slow
@pytest.mark.parametrize("films", [15, 30, 100])
def test_intervals_of_unequal_films_cover_the_truth(films: int) -> None:
    check_coverage_of_films(films, 2000)


@pytest.mark.parametrize("name", ["seeds", "one seed"])
def test_intervals_cover_the_truth(name: str) -> None:
    check_coverage(WORLDS[name], 100)


@pytest.mark.slow
@pytest.mark.parametrize("name", WORLDS)
def test_intervals_cover_the_truth_in_every_world(name: str) -> None:
    check_coverage(WORLDS[name], 1500)


def false_alarms(world: World, times: int) -> dict[str, float]:
    """Return how often equal approaches differ significantly (5%), by metric and by McNemar."""
    alarms: dict[str, list[bool]] = {name: [] for name in (*METRICS, "mcnemar")}
    for found, right in world.draws(times):
        for metric in METRICS:
            alarms[metric].append(pair_of(world, found, 0, 1, metric).p <= 0.05)
        alarms["mcnemar"].append(mcnemar_of(right[0], right[1], same_seeds=True).p <= 0.05)
    return {name: float(np.mean(found)) for name, found in alarms.items()}


EQUAL = {
    "one seed": World((SKILL, SKILL), seeds=1, spread=0.0),
    "three alike": World((SKILL, SKILL), spread=0.0),
    "three": World((SKILL, SKILL), spread=0.3),
    "five shared": World((SKILL, SKILL), seeds=5, spread=0.5, shared=True),
}


def test_equal_approaches_are_seldom_told_apart() -> None:
    rates = false_alarms(EQUAL["one seed"], 100)
    assert all(within(rate, 100, 0.0, 0.05) for rate in rates.values()), rates
    rates = false_alarms(EQUAL["three"], 60)
    assert all(within(rates[metric], 60, 0.0, 0.05) for metric in METRICS), rates


@pytest.mark.slow
@pytest.mark.parametrize("name", EQUAL)
def test_equal_approaches_are_told_apart_at_the_nominal_rate(name: str) -> None:
    rates = false_alarms(EQUAL[name], 1500)
    # McNemar's test compares single runs, and these do differ if seeds have different skills.
    tested = METRICS if EQUAL[name].spread and not EQUAL[name].shared else rates
    assert all(within(rates[key], 1500, 0.0, 0.05) for key in tested), rates


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [1, 3])
def test_holm_keeps_the_error_of_the_whole_table(seeds: int) -> None:
    world = World((SKILL,) * 5, seeds=seeds, spread=0.3 if seeds > 1 else 0.0)
    alarms, alone = [], []
    for found, _ in world.draws(200):
        pairs = [
            Pair(
                a=str(i),
                b=str(j),
                paired=True,
                same_seeds=seeds == 1,
                measured=seeds > 1,
                reviews=REVIEWS,
                differences={HEADLINE: pair_of(world, found, i, j, HEADLINE)},
                mcnemar=None,
            )
            for i, j in itertools.combinations(range(5), 2)
        ]
        alone.append(any(pair.differences[HEADLINE].p <= 0.05 for pair in pairs))
        alarms.append(any(pair.differences[HEADLINE].p_holm <= 0.05 for pair in holm(pairs)))
    assert within(float(np.mean(alarms)), 200, 0.0, 0.05)
    # Without the correction, ten comparisons would have far more false positives.
    assert np.mean(alone) > 2 * 0.05


def test_true_differences_are_found_the_larger_the_surer() -> None:
    found = []
    for gain in (0.25, 0.6, 1.2):
        world = World((SKILL + gain, SKILL), seeds=1, spread=0.0)
        ps = []
        for scores_of, right in world.draws(60):
            bootstrap = pair_of(world, scores_of, 0, 1, "accuracy").p
            ps.append((bootstrap, mcnemar_of(right[0], right[1], same_seeds=True).p))
        found.append((np.array(ps) <= 0.05).mean(axis=0))
    weak, middling, strong = found
    assert (weak < middling).all()
    assert (middling < strong).all()
    assert (strong > 0.95).all()
    # Both tests use the same data. McNemar's has a continuity correction, so it finds fewer.
    assert np.abs(middling[0] - middling[1]) < 0.15
