"""Run the command line in this process, with few reviews and one store for each test file."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pandas as pd
import pytest
import tiny

from kinopoisk_ft.cli import main
from kinopoisk_ft.reporting.plots import run_plots
from kinopoisk_ft.reporting.plots.run_plots import plot_confusion, plot_learning_curve

DATA = ["data=file", "data.path=reviews.jsonl", "data.text_column=text", "data.label_column=mark"]
SMALL = [
    "trainer.precision=fp32", "trainer.device=cpu", "trainer.epochs=2", "trainer.lr=0.01",
    "trainer.batch_size=8", "data.max_length=32",
]  # fmt: skip
BERT = [
    "model=bert_scratch", "model.hidden_size=16", "model.num_layers=2", "model.max_positions=64",
    "model.vocab_size=120",
]  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with reviews.jsonl and one store for all runs of the tests that share it."""
    folder = tmp_path_factory.mktemp("cli")
    texts, labels = tiny.reviews(80)
    pd.DataFrame({"text": [f"{t} {i}" for i, t in enumerate(texts)],
                  "mark": ["plus" if x else "minus" for x in labels]}).to_json(
        folder / "reviews.jsonl", orient="records", lines=True, force_ascii=False)  # fmt: skip
    return folder


@pytest.fixture(autouse=True)
def _here(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setenv("KINOPOISK_FT_CACHE", str(place / "cache"))
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def run(*args: str, data: Sequence[str] = DATA) -> int:
    """Run the command line in this process; return the exit code."""
    before = sys.argv
    try:
        return main([*data, *SMALL, *args])
    except SystemExit as stop:
        return int(stop.code or 0)
    finally:
        sys.argv = before


def complete(args: Sequence[str], folder: Path) -> None:
    """Run the command line in `folder`, with figures, and write what it prints to two files."""
    run_plots.plot_confusion, run_plots.plot_learning_curve = plot_confusion, plot_learning_curve
    os.chdir(folder)
    os.environ["KINOPOISK_FT_CACHE"] = str(folder / "cache")
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    with (
        (folder / "stdout.txt").open("w") as out,
        (folder / "stderr.txt").open("w") as err,
        redirect_stdout(out),
        redirect_stderr(err),
    ):
        sys.exit(main([*args]))
