"""Test the plots of one run: the confusion matrix and the learning curve."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread
from quick import quick

from kinopoisk_ft.reporting.plots import run_plots
from kinopoisk_ft.reporting.plots.run_plots import DPI, plot_confusion, plot_learning_curve


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
