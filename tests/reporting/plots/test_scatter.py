"""Test the scatter plot of a comparison: places of labels, ticks and the Pareto front."""

from __future__ import annotations

import itertools

import numpy as np
from matplotlib.text import Text
from report_rows import one_table, trained

from kinopoisk_ft.reporting.locale import Locale
from kinopoisk_ft.reporting.plots.scatter import draw, pareto_front

EN = Locale("en")


def test_picture_keeps_labels_apart_and_zero_on_the_axis() -> None:
    adapters = ["none", "lora", "dora", "ia3", "bitfit", "head"]
    runs = [
        trained(m, a, test_f1_weighted=0.93 + i / 5000, trainable_parameters=10.0 ** (3 + i % 5))
        for i, (m, a) in enumerate(itertools.product(("bert", "mamba"), adapters))
    ]
    runs.append(trained("tfidf", trainable_parameters=0.0, train_seconds=9.0))
    figure = draw(one_table(*runs), EN)
    figure.draw_without_rendering()
    for axes in figure.axes:
        frame = axes.get_window_extent()
        # `Text.get_window_extent` excludes the line from the label to its point.
        extents = [Text.get_window_extent(text) for text in axes.texts]
        assert len(extents) == len(runs)
        assert not any(a.overlaps(b) for a, b in itertools.combinations(extents, 2))
        assert all(frame.x0 - 1 <= e.x0 and e.x1 <= frame.x1 + 1 for e in extents)
    time, parameters = figure.axes
    assert "0" not in [label.get_text() for label in time.get_xticklabels()]
    label, position = parameters.get_xticklabels()[0], parameters.get_xticks()[0]
    low, _ = parameters.get_xlim()
    assert label.get_text() == "0"
    assert low < position < 1000


def test_pareto_front_is_what_nothing_dominates() -> None:
    points = [(float(x), float(y)) for x, y in np.random.default_rng(0).integers(0, 12, (60, 2))]
    expected = {
        i
        for i, (cost, score) in enumerate(points)
        if not any(c <= cost and s >= score and (c, s) != (cost, score) for c, s in points)
    }
    found = pareto_front(points)
    assert set(found) == expected
    assert [points[i][0] for i in found] == sorted(points[i][0] for i in found)
