"""Test that benchmarks of whole runs find the metrics of a run in its store."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
from places import ROOT
from tracked import tracker


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
