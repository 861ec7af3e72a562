"""Test the scatter plot of a comparison: looks, ticks and the Pareto front."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from matplotlib.text import Text
from report_rows import one_table, trained

from kinopoisk_ft.reporting.locale import LANGUAGES, Locale
from kinopoisk_ft.reporting.output import FIGURES
from kinopoisk_ft.reporting.plots.looks import assign_looks
from kinopoisk_ft.reporting.plots.scatter import draw, name_point, pareto_front

EN = Locale("en")


def test_approaches_keep_their_look_and_zero_is_on_the_axis() -> None:
    adapters = ["none", "lora", "dora", "ia3", "bitfit", "head"]
    runs = [
        trained(m, a, test_f1_weighted=0.93 + i / 5000, trainable_parameters=10.0 ** (3 + i % 5))
        for i, (m, a) in enumerate(itertools.product(("bert", "mamba"), adapters))
    ]
    runs.append(trained("tfidf", trainable_parameters=0.0, train_seconds=9.0))
    table = one_table(*runs)
    looks = assign_looks(row.name for row in table.rows)
    assert len({(look.colour, look.marker) for look in looks.values()}) == len(runs)
    figure = draw(table, EN, looks)
    figure.draw_without_rendering()
    for axes in figure.axes:
        points = [line for line in axes.lines if line.get_gid()]
        drawn = [(line.get_color(), line.get_marker()) for line in points]
        assert drawn == [(looks[r.name].colour, looks[r.name].marker) for r in table.rows]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [row.name for row in table.rows]
    time, parameters = figure.axes
    assert "0" not in [label.get_text() for label in time.get_xticklabels()]
    label, position = parameters.get_xticklabels()[0], parameters.get_xticks()[0]
    low, _ = parameters.get_xlim()
    assert label.get_text() == "0"
    assert low < position < 1000


def test_memory_of_a_process_and_of_a_gpu_are_not_in_one_panel() -> None:
    runs = [trained("tfidf"), trained("bert", device="cuda"), trained("gru", device="cuda")]
    for run in runs:
        run.metrics["peak_memory_mb"] = 1000.0
    table = one_table(*runs)
    time, _, memory = draw(table, EN, assign_looks(row.name for row in table.rows)).axes
    assert len([line for line in time.lines if line.get_gid()]) == 3
    drawn = {line.get_gid() for line in memory.lines if line.get_gid()}
    assert drawn == {name_point(row, table) for row in table.rows if row.is_network}


def test_ticks_of_an_axis_have_one_format() -> None:
    runs = [trained("bert", train_seconds=0.2), trained("gru", train_seconds=40.0)]
    table = one_table(*runs)
    axes = draw(table, EN, assign_looks(["bert", "gru"])).axes[0]
    labels = [label.get_text() for label in axes.get_xticklabels()]
    assert len(labels) >= 3
    assert len({len(label.partition(".")[2]) for label in labels}) == 1


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


def test_the_front_is_drawn_even_if_one_approach_is_on_it() -> None:
    fast = trained("bert", train_seconds=0.2, test_f1_weighted=0.95)
    table = one_table(fast, trained("gru", train_seconds=40.0))
    axes = draw(table, EN, assign_looks(["bert", "gru"])).axes[0]
    (front,) = (line for line in axes.lines if line.get_linestyle() == "--")
    assert front.get_xydata().tolist() == [[0.2, 0.95], [40.0, 0.95]]


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("kind", FIGURES)
def test_no_text_is_cut_off_at_the_edge_of_a_figure(kind: str, language: str) -> None:
    names = [f"{letter}{'-approach' * 6}" for letter in "ab"]
    skills = {names[0]: [2.5, 2.6], names[1]: [2.4, 2.5]}
    runs = [trained(name, seed=seed) for name in names for seed in (0, 1)]
    for run in runs:
        run.settings["data.split"] = "film"
        run.metrics["temperature"] = 1.2
    table = one_table(*runs, answered=skills)
    figure = FIGURES[kind](table, Locale(language), assign_looks(names))
    figure.draw_without_rendering()
    whole = figure.bbox
    boxes = {text.get_text(): text.get_window_extent() for text in figure.findobj(Text)}
    outside = [
        text
        for text, box in boxes.items()
        if text and (box.x0 < whole.x0 - 1 or box.x1 > whole.x1 + 1)
    ]
    assert not outside


def test_calibration_before_and_after_scaling_differ_without_colours() -> None:
    run = trained()
    run.metrics["temperature"] = 1.2
    table = one_table(run, answered={"bert": [2.5]})
    (axes,) = FIGURES["calibration"](table, EN, assign_looks(["bert"])).axes
    before, after = (points.get_paths()[0].vertices for points in axes.collections)
    assert len(before) != len(after)
