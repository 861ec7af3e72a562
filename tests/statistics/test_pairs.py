"""Test pairs of approaches: matched runs, McNemar and Holm by hand, and refused comparisons."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from made_up import answers, approach
from scipy import stats
from statsmodels.stats.multitest import multipletests

from kinopoisk_ft.statistics.comparison import compare
from kinopoisk_ft.statistics.equivalence import decide
from kinopoisk_ft.statistics.metrics import COUNTED, HEADLINE
from kinopoisk_ft.statistics.pairs import correct_holm, mcnemar_of
from kinopoisk_ft.statistics.predictions import Predictions


def test_mcnemar_by_the_binomial_and_by_chi_squared() -> None:
    def right(only_a: int, only_b: int) -> tuple[np.ndarray, np.ndarray]:
        a = np.array([1] * only_a + [0] * only_b + [1] * 30 + [0] * 5, dtype=bool)
        return a[None], np.concatenate([~a[: only_a + only_b], a[only_a + only_b :]])[None]

    few = mcnemar_of(*right(3, 11), same_seeds=True)
    assert (few.only_a, few.only_b) == (3, 11)
    assert few.p == pytest.approx(stats.binomtest(3, 14).pvalue)
    many = mcnemar_of(*right(20, 45), same_seeds=True)
    assert many.p == pytest.approx(stats.chi2.sf((abs(20 - 45) - 1) ** 2 / 65, 1))
    alike = mcnemar_of(*right(0, 0), same_seeds=True)
    assert alike.p == 1
    several = mcnemar_of(*(np.repeat(x, 3, axis=0) for x in right(3, 11)), same_seeds=False)
    assert several.p == pytest.approx(2 * few.p)


def test_mcnemar_of_groups_is_all_ways_to_change_their_sides() -> None:
    rng = np.random.default_rng(5)
    a, b = rng.random((2, 90)) < 0.7
    groups = rng.integers(0, 11, 90)
    found = mcnemar_of(a[None], b[None], same_seeds=True, groups=groups)
    differences = np.bincount(groups, a.astype(float) - b)
    sums = [np.dot(signs, differences) for signs in itertools.product((-1, 1), repeat=11)]
    assert found.p == pytest.approx(np.mean(np.abs(sums) >= abs(differences.sum())))
    single = mcnemar_of(a[None], b[None], same_seeds=True, groups=np.arange(90))
    only_a, only_b = np.sum(a & ~b), np.sum(b & ~a)
    assert single.p == pytest.approx(stats.binomtest(only_a, only_a + only_b).pvalue)
    # There are only two ways to change the side of a single group, so they would say nothing.
    alone, ungrouped = (
        mcnemar_of(a[None], b[None], same_seeds=True, groups=one) for one in (np.zeros(90), None)
    )
    assert alone == ungrouped


@pytest.mark.parametrize("size", [1, 2, 7, 40])
def test_holms_correction_is_that_of_statsmodels(size: int) -> None:
    ps = np.round(np.random.default_rng(size).random(size) ** 3, 2)
    assert correct_holm(ps.tolist()) == pytest.approx(multipletests(ps, method="holm")[1])


def test_every_pair_is_corrected_by_holm() -> None:
    runs = [answers(seed=i, wrong=w) for i, w in enumerate((0.05, 0.08, 0.12, 0.2))]
    found = compare([approach(str(i), run) for i, run in enumerate(runs)])
    assert [(p.a, p.b) for p in found.pairs] == list(itertools.combinations("0123", 2))
    for metric in (one.name for one in COUNTED):
        ps = [pair.differences[metric].p for pair in found.pairs]
        corrected = [pair.differences[metric].p_holm for pair in found.pairs]
        assert corrected == pytest.approx(multipletests(ps, method="holm")[1])
    pair = found.pair("3", "0")
    assert pair is not None
    forward = found.pair("0", "3")
    assert forward is not None
    assert pair.differences["accuracy"].mean == -forward.differences["accuracy"].mean < 0
    assert pair.differences["accuracy"].low == -forward.differences["accuracy"].high
    assert pair.differences["f1_weighted"].p_holm <= 0.05
    verdicts = [one.verdict for p in (pair, forward) for one in decide([p.differences[HEADLINE]])]
    assert verdicts == ["worse", "as good"]
    assert forward.mcnemar
    assert pair.mcnemar
    assert pair.mcnemar.only_a == forward.mcnemar.only_b
    assert found.pair("0", "nobody") is None


def test_matching_of_seeds() -> None:
    runs = [answers(seed=i) for i in range(6)]
    a = approach("a", *runs[:3])
    same = compare([a, approach("b", *runs[3:], seeds="201")]).pairs[0]
    assert same.same_seeds
    assert same.measured
    only_a = [np.sum((x.predicted == x.labels) & (y.predicted != y.labels))
              for x, y in zip(runs[:3], (runs[4], runs[5], runs[3]), strict=True)]  # fmt: skip
    assert same.mcnemar is not None
    assert same.mcnemar.only_a == pytest.approx(np.mean(only_a))
    assert not compare([a, approach("b", *runs[3:], seeds="345")]).pairs[0].same_seeds
    assert not compare([a, approach("b", *runs[3:], seeds="011")]).pairs[0].same_seeds
    # It is unknown which of two runs with the same seed belong together.
    twice = [approach("a", *runs[:3], seeds="011"), approach("b", *runs[3:], seeds="011")]
    assert not compare(twice).pairs[0].same_seeds
    lone = compare([a, approach("b", runs[3])]).pairs[0]
    assert not lone.measured
    assert not lone.same_seeds


def test_other_reviews_are_compared_unpaired_and_said_so() -> None:
    a, b = answers(), answers(seed=1)
    paired = compare([approach("a", a), approach("b", b)]).pairs[0]
    shifted = Predictions(**{**vars(b), "rows": b.rows + 1})
    found = compare([approach("a", a), approach("b", shifted)])
    assert [(p.kind, p.names, p.detail) for p in found.problems] == [
        ("unpaired", ("a", "b"), "rows")
    ]
    (pair,) = found.pairs
    assert not pair.paired
    assert pair.mcnemar is None
    assert pair.differences["accuracy"].mean == pytest.approx(paired.differences["accuracy"].mean)
    # The test of two independent proportions.
    shares = [np.mean(run.labels == run.predicted) for run in (a, b)]
    error = np.sqrt(sum(p * (1 - p) / 300 for p in shares))
    width = pair.differences["accuracy"].high - pair.differences["accuracy"].low
    assert width == pytest.approx(2 * 1.96 * error, rel=0.05)
    # The resamples of other reviews are independent, even if the answers are equal.
    twin = Predictions(**{**vars(a), "rows": b.rows + 1})
    (equal,) = compare([approach("a", a), approach("b", twin)]).pairs
    assert equal.differences["accuracy"].high > 0.01
    labels = Predictions(**{**vars(b), "labels": 1 - b.labels})
    assert compare([approach("a", a), approach("b", labels)]).problems[0].detail == "labels"


def test_what_cannot_be_compared_is_named() -> None:
    good, other = answers(), answers(data=5)
    three = answers(classes=3)
    found = compare([
        approach("good", good), approach("gone", good, None, seeds="07"),
        approach("mixed", good, other), approach("three", three),
    ])  # fmt: skip
    assert {(p.kind, p.names, p.detail) for p in found.problems} == {
        ("no_predictions", ("gone",), "7"),
        ("own_mismatch", ("mixed",), "labels"),
        ("unpaired", ("good", "three"), "classes"),
    }
    assert set(found.means) == {"good", "three"}
    assert found.pairs == ()
    assert compare([]).means == {}
