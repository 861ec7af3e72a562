"""Test the plots of one run: the confusion matrix and the learning curve."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread
from quick import quick

from kinopoisk_ft.reporting.locale import Locale
from kinopoisk_ft.reporting.plots import run_plots
from kinopoisk_ft.reporting.plots.looks import assign_looks
from kinopoisk_ft.reporting.plots.run_plots import (
    DPI,
    draw_learning_curves,
    plot_confusion,
    plot_learning_curve,
)


@pytest.mark.parametrize("size", quick([15, 2, 6], 1))
def test_confusion_matrix_picture(
    size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_plots, "DPI", DPI)
    matrix = np.eye(size, dtype=int) * 50 + 1
    # One class has no test rows.
    matrix[0] = 0
    file = tmp_path / "matrix.png"
    plot_confusion(matrix, [f"класс {i}" for i in range(size)], file)
    assert imread(file).shape[1] >= 800
    assert [path.name for path in tmp_path.iterdir()] == ["matrix.png"]


def test_learning_curve_takes_gaps_and_nothing(tmp_path: Path) -> None:
    history = [{"step": s, "train_loss": 1 / s, "val_loss": None} for s in range(1, 50)]
    history += [{"step": 49, "val_loss": 0.3, "val_f1_weighted": float("nan")}]
    history += [{"step": 50, "val_loss": 0.2, "val_f1_weighted": 0.9}]
    for name, rows in {"a": history, "b": history, "losses": history[:9], "none": []}.items():
        folder = tmp_path / name
        folder.mkdir()
        plot_learning_curve(rows, folder / "curve.svg")
    assert (tmp_path / "a/curve.svg").read_bytes() == (tmp_path / "b/curve.svg").read_bytes()
    sizes = {
        name: (tmp_path / name / "curve.svg").stat().st_size for name in ("a", "losses", "none")
    }
    assert sizes["none"] < sizes["losses"] < sizes["a"]


@pytest.mark.parametrize("steps", [range(12, 80, 5), range(0, 900, 10), range(81, 90), [1, 2], [7]])
def test_learning_curves_have_ticks_and_the_markers_of_the_legend(steps: Sequence[int]) -> None:
    rows = [{"step": float(step), "val_loss": 0.5} for step in steps]
    names = [f"approach {number}" for number in range(10)]
    looks = assign_looks(names)
    figure = draw_learning_curves({n: [rows] for n in names}, "val_loss", Locale("en"), looks)
    figure.draw_without_rendering()
    (axes,) = figure.axes
    low, high = axes.get_xlim()
    assert len({label.get_text() for label in axes.get_xticklabels()}) == len(axes.get_xticks()) > 0
    assert all(low <= tick <= high for tick in axes.get_xticks())
    assert [line.get_marker() for line in axes.lines] == [looks[n].marker for n in names]
