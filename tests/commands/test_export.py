"""Test that an exported model gives the answers of the model folder."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import tiny
from saved_networks import TEXTS, save

from kinopoisk_ft.cli import main
from kinopoisk_ft.models.onnx_model import ONNX


@pytest.mark.slow
def test_predict_writes_the_same_table_from_the_exported_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    save("bert", "none", run / "model")
    assert main(["export", str(run)]) == 0
    printed = capsys.readouterr().out
    assert f"fp32 model written to {run / 'onnx'}" in printed
    assert "the same class for 26 of 26" in printed
    pd.DataFrame({"id": range(3), "text": TEXTS}).to_json(
        tmp_path / "in.jsonl", orient="records", lines=True
    )
    tables = []
    for name in (run, run / "onnx"):
        output = str(tmp_path / f"{name.name}.csv")
        assert (
            main(["predict", str(name), "--input", str(tmp_path / "in.jsonl"), "--output", output])
            == 0
        )
        tables.append(pd.read_csv(output))
    pd.testing.assert_frame_equal(*tables, atol=1e-5)
    assert main(["predict", str(run / "onnx"), tiny.GOOD, "--device", "cuda"]) == 1
    assert "runs on the CPU" in capsys.readouterr().err


def test_errors_are_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save("bert", "none", tmp_path / "model")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "notes.txt").write_text("mine")
    for output in (tmp_path / "taken", tmp_path / "taken" / "notes.txt"):
        assert main(["export", str(tmp_path / "model"), "--output", str(output)]) == 1
        assert "error: the output is or contains a file that does not" in capsys.readouterr().err
    assert not (tmp_path / "taken" / ONNX).exists()
    assert main(["export", str(tmp_path / "absent")]) == 1
    assert "error: " in capsys.readouterr().err
