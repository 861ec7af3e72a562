"""Test that the benchmark of exported models runs; it compares its F1 with scikit-learn's."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
import tiny
from places import ROOT
from saved_networks import save


@pytest.mark.slow
def test_the_benchmark_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import export

    texts, labels = tiny.reviews(40)
    pd.DataFrame({"content": texts}).to_json(tmp_path / "data.jsonl", orient="records", lines=True)
    save("bert_scratch", "lora", tmp_path / "run" / "model", "model.num_layers=1")
    films = [f"film {i % 5}" for i in range(40)]
    frame = pd.DataFrame({"row": range(40), "label": labels, "film": films})
    frame.to_parquet(tmp_path / "run" / "predictions.parquet")
    report = tmp_path / "onnx.json"
    paths = [str(tmp_path / "data.jsonl"), str(tmp_path / "run")]
    monkeypatch.setattr("sys.argv", ["export.py", *paths, "--quick", "--json", str(report)])
    export.main()
    times, changes = (section["rows"] for section in json.loads(report.read_text())["sections"])
    assert [row["way"] for row in times] == [
        export.PYTORCH, export.MERGED, export.FP32, export.INT8, export.KEPT,
    ]  # fmt: skip
    assert all(row["one review, ms"] > 0 for row in times)
    assert changes[0]["reviews"] == 20
