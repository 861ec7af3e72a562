"""Test both sides of the comparison with a Trainer: their reviews, and the metrics of a run."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from places import ROOT
from tracked import tracker

from kinopoisk_ft.data.kinopoisk import Kinopoisk


@pytest.fixture
def sides(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from common import sides

    return sides


def test_metrics_have_the_names_that_a_run_gives_them(sides: ModuleType, tmp_path: Path) -> None:
    store = tmp_path / "mlflow.db"
    run = tracker(f"sqlite:///{store}")
    run.start("one", {}, {}, folder=tmp_path)
    recorded = dict.fromkeys((*sides.TRAINING, "eval_seconds", "test_f1_weighted"), 2.0)
    run.metrics(dict.fromkeys(recorded, 1.0), 1)
    run.metrics(recorded, 2)
    run.finish("FINISHED")
    assert sides.read_metrics(store) == recorded


def test_both_sides_read_the_same_reviews(
    sides: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from common import hf_trainer

    data = tmp_path / "kinopoisk.jsonl"
    rows = [
        {"content": f"\n\nотзыв {row}", "grade3": grade, "movie_name": "", "author": "", "date": "",
         "title": None, "grade10": 0.0}
        for row, grade in enumerate(["Good", "Bad", "Good", "Neutral", "Good"] * 20)
    ]  # fmt: skip
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def tokenizer(texts: list[str], **_: Any) -> dict[str, list[str]]:
        return {"input_ids": texts}

    args = argparse.Namespace(data=data, limit=70, max_length=256)
    parts = hf_trainer.read_parts(args, tokenizer)
    split = Kinopoisk(path=str(data), classes=2, max_length=256, limit=70, empty="drop").load()
    for part, expected in zip(parts, (split.train, split.val, split.test), strict=True):
        assert [row["input_ids"] for row in part] == expected["text"].tolist()
        assert [row["labels"] for row in part] == expected["label"].tolist()
