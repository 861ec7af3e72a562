"""Test verdicts on differences whose true value is known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from test_simulated_coverage import SKILL, World, within

from kinopoisk_ft.statistics.equivalence import Decision, decide
from kinopoisk_ft.statistics.metrics import HEADLINE
from kinopoisk_ft.statistics.pairs import Difference, difference
from kinopoisk_ft.statistics.seeds import RunScores


def normal(mean: float, error: float) -> Difference:
    """Return a difference whose resamples are the quantiles of a normal distribution."""
    drawn = mean + error * stats.norm.ppf((np.arange(9999) + 0.5) / 9999)
    a = RunScores(np.array([mean]), drawn[:, None])
    return difference(a, RunScores(np.zeros(1), np.zeros((9999, 1))), same_seeds=True)


def alone(mean: float, error: float, margin: float = 0.02) -> Decision:
    (found,) = decide([normal(mean, error)], margin)
    return found


@pytest.mark.parametrize(
    ("mean", "error", "verdict"),
    [(0.0, 0.01, "as good"), (-0.005, 0.005, "as good"), (0.1, 0.02, "as good"),
     (0.0, 0.02, "undecided"), (-0.02, 0.001, "undecided"), (-0.05, 0.02, "undecided"),
     (-0.05, 0.01, "worse"), (-0.03, 0.005, "worse")],
)  # fmt: skip
def test_verdicts_follow_the_one_sided_tests(mean: float, error: float, verdict: str) -> None:
    found = alone(mean, error)
    assert found.verdict == verdict
    assert found.p_as_good == pytest.approx(stats.norm.sf((mean + 0.02) / error), abs=2e-3)
    assert found.p_worse == pytest.approx(stats.norm.cdf((mean + 0.02) / error), abs=2e-3)
    both = max(found.p_as_good, stats.norm.cdf((mean - 0.02) / error))
    assert found.p_equivalent == pytest.approx(both, abs=2e-3)


def test_several_verdicts_are_corrected() -> None:
    """An error of 0.0115 gives p = 0.041 alone, and 0.082 for the first of two."""
    assert alone(0.0, 0.0115).verdict == "as good"
    found = decide([normal(0.0, 0.0115), normal(0.0, 0.0115)])
    assert [one.verdict for one in found] == ["undecided", "undecided"]
    assert decide([]) == []


def test_simultaneous_bounds_agree_with_the_verdicts() -> None:
    """Many random families, in which each verdict occurs; the ends are those of the two tests."""
    rng, seen = np.random.default_rng(0), set()
    for _ in range(60):
        means, errors = rng.normal(-0.02, 0.03, 5), rng.uniform(0.003, 0.02, 5)
        for found in decide([normal(m, e) for m, e in zip(means, errors, strict=True)]):
            above, below = found.low >= -0.02, found.high <= -0.02
            expected = "as good" if above else "worse" if below else "undecided"
            assert found.verdict == expected
            seen.add((found.verdict, found.low > -0.02, found.high < -0.02))
    assert {verdict for verdict, *_ in seen} == {"as good", "worse", "undecided"}
    one = alone(0.01, 0.01)
    assert one.low == pytest.approx(0.01 + 0.01 * stats.norm.ppf(0.05), abs=1e-4)
    assert one.high == pytest.approx(0.01 - 0.01 * stats.norm.ppf(0.05), abs=1e-4)
    wide, narrow = decide([normal(-0.01, 0.02), normal(0.0, 0.002)])
    assert (wide.verdict, narrow.verdict) == ("undecided", "as good")
    assert wide.low == pytest.approx(-0.01 + 0.02 * stats.norm.ppf(0.05), abs=1e-3)
    assert narrow.low == -0.02


def test_bounds_are_possible_differences() -> None:
    found = alone(0.1, 3.0)
    assert (found.low, found.high) == (-1.0, 1.0)


@pytest.mark.slow
def test_simultaneous_bounds_hold_together_in_95_of_100_cases() -> None:
    """Three approaches at different distances from the margin; the errors are independent."""
    rng, truth = np.random.default_rng(0), np.array([-0.02, 0.0, 0.01])
    missed = 0
    for _ in range(1000):
        measured = truth + rng.normal(0, 0.008, 3)
        found = decide([normal(m, 0.008) for m in measured])
        missed += any(one.low > true for one, true in zip(found, truth, strict=True))
    assert missed / 1000 <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / 1000)


def test_the_needed_number_of_reviews_decides() -> None:
    found = alone(0.0, 0.03)
    assert found.more_reviews is not None
    assert found.more_seeds is None
    error = 0.03 / np.sqrt(found.more_reviews)
    rng = np.random.default_rng(0)
    verdicts = [alone(rng.normal(0.0, error), error).verdict for _ in range(500)]
    assert np.mean([v == "as good" for v in verdicts]) == pytest.approx(0.8, abs=0.06)
    assert alone(-0.0201, 0.01).more_reviews is None


@pytest.mark.parametrize(
    ("others", "level"), [([-0.02] * 3, 0.05 / 4), ([0.1, -0.02, -0.02], 0.05 / 3)]
)
def test_the_needed_number_is_for_the_corrected_verdict(others: list[float], level: float) -> None:
    """The oracle is the sample size for a one-sided z-test at the level of Holm's next step."""
    first, *_ = decide([normal(0.0, 0.03), *(normal(mean, 0.005) for mean in others)])
    sigmas = stats.norm.isf(level) + stats.norm.isf(0.2)
    assert first.more_reviews == pytest.approx((0.03 * sigmas / 0.02) ** 2, rel=0.01)
    error = 0.03 / np.sqrt(first.more_reviews)
    rng = np.random.default_rng(0)
    verdicts = [
        decide([normal(rng.normal(0.0, error), error), *(normal(m, 0.005) for m in others)])
        for _ in range(200)
    ]
    decided = np.mean([found[0].verdict == "as good" for found in verdicts])
    assert decided == pytest.approx(0.8, abs=0.08)


def test_the_needed_number_is_for_the_verdict_that_is_close() -> None:
    """One of two losses is decided, so the other one has the level of a single test."""
    found, _ = decide([normal(-0.05, 0.02), normal(-0.2, 0.01)])
    assert found.verdict == "undecided"
    sigmas = stats.norm.isf(0.05) + stats.norm.isf(0.2)
    assert found.more_reviews == pytest.approx((0.02 * sigmas / 0.03) ** 2, rel=0.01)


def paired(count: int, error: float) -> tuple[RunScores, RunScores]:
    """Return two approaches with the mean 0, whose paired seeds differ by a deviation of 0.01."""
    scores = np.linspace(-1, 1, count) if count > 1 else np.zeros(1)
    scores *= 0.01 / (scores.std(ddof=1) if count > 1 else 1)
    drawn = error * stats.norm.ppf((np.arange(9999) + 0.5) / 9999)[:, None]
    return RunScores(scores, scores + drawn), RunScores(0 * scores, 0 * drawn + 0 * scores)


@pytest.mark.parametrize("count", [2, 3])
def test_the_needed_number_of_seeds_is_that_of_students_t_test(count: int) -> None:
    """The oracle is the sample size for a one-sided t-test, from the noncentral t distribution."""
    a, b = paired(count, 1e-9)
    (found,) = decide([difference(a, b, same_seeds=True)], margin=0.01)
    power = {
        n: stats.nct.sf(stats.t.isf(0.05, n - 1), n - 1, 0.01 / (0.01 / np.sqrt(n)))
        for n in range(2, 30)
    }
    expected = min(n for n, probability in power.items() if probability >= 0.8)
    assert found.more_seeds is not None
    assert abs(count + found.more_seeds - expected) <= 1


def test_reviews_do_not_decide_with_too_few_seeds() -> None:
    """With a normal approximation, fewer reviews and seeds than the present ones would decide."""
    a, b = paired(2, 0.001)
    (found,) = decide([difference(a, b, same_seeds=True)])
    assert found.verdict == "undecided"
    error = np.hypot(0.001, 0.01 / np.sqrt(2))
    assert 0.02 / error > stats.norm.isf(0.05) + stats.norm.isf(0.2)
    assert found.more_reviews is None
    assert found.more_seeds is not None
    assert 1 <= found.more_seeds <= 3


def test_the_needed_number_of_seeds_is_unknown_if_an_approach_has_one() -> None:
    (a, _), (b, _) = paired(2, 0.03), paired(1, 0.03)
    (found,) = decide([difference(a, b, same_seeds=False)])
    assert found.verdict == "undecided"
    assert found.more_seeds is None


def test_more_reviews_also_reduce_their_part_of_the_variance_between_seeds() -> None:
    """The seeds differ only because their reviews are different, so reviews replace seeds."""
    rng = np.random.default_rng(0)
    a, b = paired(3, 0.001)
    a = RunScores(a.observed, a.resampled + rng.normal(0, 0.02, a.resampled.shape))
    (found,) = decide([difference(a, b, same_seeds=True)], margin=0.01)
    assert found.verdict == "undecided"
    assert found.more_reviews is not None


def count_as_good(world: World, times: int) -> float:
    """Return how often b is called as good as a, if it is worse by exactly the margin."""
    a, b = world.truth[HEADLINE]
    margin = float(a - b)
    count = 0
    for found, _ in world.draws(times):
        one, other = (found[HEADLINE][i] for i in (1, 0))
        pair = difference(one, other, same_seeds=world.seeds == 1)
        count += decide([pair], margin)[0].verdict == "as good"
    return count / times


WORLDS = {
    "one seed": World((SKILL, SKILL - 0.25), seeds=1, spread=0.0),
    "three seeds": World((SKILL, SKILL - 0.25)),
}


@pytest.mark.parametrize("name", WORLDS)
def test_a_loss_of_the_margin_is_seldom_called_as_good(name: str) -> None:
    assert within(count_as_good(WORLDS[name], 100), 100, 0.0, 0.05)


@pytest.mark.slow
@pytest.mark.parametrize("name", WORLDS)
def test_a_loss_of_the_margin_is_called_as_good_at_the_nominal_rate(name: str) -> None:
    assert within(count_as_good(WORLDS[name], 1500), 1500, 0.0, 0.05)
