"""Test curves over numbers of labels: where they cross, and the gain of more labels."""

from __future__ import annotations

import numpy as np
import pytest
from made_up import answers
from sklearn.metrics import f1_score

from kinopoisk_ft.statistics.label_curve import (
    Curve,
    Point,
    _last_crossings,
    draw_curves,
    estimate_gain,
    find_crossing,
    find_crossings,
)
from kinopoisk_ft.statistics.seeds import RunScores

LABELS = (100.0, 1000.0, 10000.0)


def curve(name: str, scores: tuple[float, ...], spread: float = 0.0, seed: int = 0) -> Curve:
    """Return a curve whose scores have a normal error in each resample."""
    rng = np.random.default_rng(seed)
    points = tuple(
        Point(
            limit=f"{labels:.0f}",
            labels=labels,
            seeds=("0",),
            scores=RunScores(np.array([score]), score + spread * rng.normal(size=(4000, 1))),
        )
        for labels, score in zip(LABELS, scores, strict=True)
    )
    return Curve(name=name, points=points)


def test_curves_cross_on_the_logarithmic_axis() -> None:
    crossing = find_crossing(curve("a", (0.5, 0.8, 0.9)), curve("b", (0.6, 0.7, 0.75)))
    assert crossing is not None
    # Halfway between 100 and 1,000 on this axis.
    assert crossing.labels == pytest.approx(10**2.5)
    assert (crossing.low, crossing.high) == pytest.approx((10**2.5, 10**2.5))


def test_the_last_crossing_counts() -> None:
    differences = np.array([
        [1.0, -1.0, 1.0], [-1.0, 1.0, -1.0], [1.0, 1.0, 1.0], [0.0, 0.0, 0.0], [-1.0, -1.0, 3.0],
        [-1.0, 3.0, 0.5],
    ])  # fmt: skip
    found = _last_crossings(np.array(LABELS), differences)
    expected = [10**3.5, np.inf, 0.0, np.inf, 10**3.25, 10**2.25]
    np.testing.assert_allclose(found, expected)


def test_points_before_the_crossing_are_divided_by_which_curve_is_higher() -> None:
    b = curve("b", (0.6, 0.7, 0.75))
    for scores, above, below in (
        ((0.7, 0.6, 0.9), (100.0,), (1000.0,)),
        ((0.5, 0.6, 0.9), (), (100.0, 1000.0)),
        ((0.5, 0.8, 0.9), (), (100.0,)),
        ((0.7, 0.8, 0.9), (), ()),
        ((0.7, 0.8, 0.7), (100.0, 1000.0), (10000.0,)),
    ):
        crossing = find_crossing(curve("a", scores), b)
        assert crossing is not None
        assert (crossing.above, crossing.below) == (above, below)


def test_the_interval_holds_the_true_crossing() -> None:
    """This holds in 95% of simulated studies, whose true curves cross at 1,000 labels."""
    truth, held = (-0.04, 0.0, 0.04), 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        seen = tuple(0.8 + d + 0.01 * rng.normal() for d in truth)
        one, other = curve("a", seen, 0.01, seed), curve("b", (0.8, 0.8, 0.8))
        crossing = find_crossing(one, other)
        assert crossing is not None
        held += crossing.low <= 1000 <= crossing.high
    # The standard deviation of a share of 95% in 200 studies is 1.5%.
    assert 0.92 <= held / 200 <= 0.985


def test_curves_with_the_same_seeds_are_paired() -> None:
    """Each seed changes both curves equally, so crossing and gain are certain."""
    luck = np.array([-0.1, 0.0, 0.1])

    def lucky(name: str, scores: tuple[float, ...]) -> Curve:
        points = tuple(
            Point(limit=f"{labels:.0f}", labels=labels, seeds=("0", "1", "2"),
                  scores=RunScores(score + luck, np.tile(score + luck, (4000, 1))))
            for labels, score in zip(LABELS, scores, strict=True)
        )  # fmt: skip
        return Curve(name=name, points=points)

    a = lucky("a", (0.5, 0.7, 0.8))
    crossing, gain = find_crossing(a, lucky("b", (0.6, 0.6, 0.65))), estimate_gain(a, 90_000)
    assert crossing is not None
    assert (crossing.low, crossing.high) == pytest.approx((10**2.5, 10**2.5))
    assert gain is not None
    assert (gain.low, gain.high) == pytest.approx((0.1, 0.1))


def test_each_pair_is_named_by_the_one_that_wins_with_most_labels() -> None:
    curves = [curve("a", (0.5, 0.6, 0.7)), curve("b", (0.6, 0.65, 0.68)), curve("c", (0.9,) * 3)]
    found = {(c.a, c.b): c.labels for c in find_crossings(curves)}
    assert found.keys() == {("a", "b"), ("c", "a"), ("c", "b")}
    assert 1000 < found["a", "b"] < 10000
    assert found["c", "a"] == found["c", "b"] == 0


def test_without_common_numbers_of_labels_there_is_no_crossing() -> None:
    one = curve("a", (0.5, 0.6, 0.7))
    single = Curve(name="b", points=one.points[:1])
    assert find_crossing(one, single) is None
    assert find_crossings([one, single]) == []
    assert estimate_gain(single, 500) is None


def test_the_gain_follows_the_last_two_points() -> None:
    found = estimate_gain(curve("a", (0.5, 0.7, 0.8), 0.01), 90_000)
    assert found is not None
    # Ten times as many labels, as between the last two points.
    assert found.mean == pytest.approx(0.1)
    assert found.low < 0.1 < found.high
    assert found.high - found.low == pytest.approx(2 * 1.96 * 0.01 * 2**0.5, rel=0.05)
    few = estimate_gain(curve("a", (0.5, 0.7, 0.8)), 500)
    assert few is not None
    assert few.mean == pytest.approx(0.1 * np.log10(1.05))


def test_runs_are_scored_on_the_same_resamples() -> None:
    runs = {
        "a": [("10", 10.0, ("0", "1"), [answers(wrong=0.3, seed=s) for s in (0, 1)]),
              ("None", 40.0, ("0", "1"), [answers(wrong=0.1, seed=s) for s in (2, 3)])],
        "b": [("None", 40.0, ("0",), [answers(wrong=0.1, seed=2)])],
    }  # fmt: skip
    a, b = draw_curves(runs)
    assert [point.limit for point in a.points] == ["10", "None"]
    for point, (*_, predictions) in zip(a.points, runs["a"], strict=True):
        expected = [f1_score(p.labels, p.predicted, average="weighted") for p in predictions]
        np.testing.assert_allclose(point.scores.observed, expected)
    # The same predictions have the same score in each resample.
    last = a.points[-1].scores.resampled[:, 0]
    np.testing.assert_array_equal(last, b.points[0].scores.resampled[:, 0])
    low, high = a.intervals[0].low, a.intervals[0].high
    assert low < a.points[0].scores.observed.mean() < high
