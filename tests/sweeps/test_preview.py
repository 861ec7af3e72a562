"""Test what a run and a sweep print before they start."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import pytest
from omegaconf import DictConfig

from kinopoisk_ft.errors import UserError
from kinopoisk_ft.sweeps import forecast
from kinopoisk_ft.sweeps.preview import Announce, Check

CODE = """
import sys
from kinopoisk_ft.cli import main
from kinopoisk_ft.sweeps import preview

def stop(*_):
    print(sorted({"torch", "sklearn", "pandas", "mlflow", "transformers"} & set(sys.modules)))
    sys.exit(0)

preview.check_config = stop
main(sys.argv[1:])
"""


def test_first_line_says_what_a_run_does_and_needs_no_heavy_package(tmp_path: Path) -> None:
    args = ["train", "model=encoder", "model.name=/models/small", "adapter=lora", "data=demo"]
    done = subprocess.run(
        [sys.executable, "-c", CODE, *args, "output_dir=run"], cwd=tmp_path, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    expected = ["finetune small + lora on demo (synthetic reviews), seed 42, in run", "[]"]
    assert done.stdout.splitlines() == expected, done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (UserError("the model has 2", where="adapter.layers"), "the model has 2"),
        (KeyError("hidden_size"), "KeyError: 'hidden_size'"),
    ],
)
def test_a_sweep_without_a_forecast_says_why_and_continues(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception,
    reason: str,
) -> None:  # fmt: skip
    def fail(jobs: object) -> NoReturn:
        raise error

    monkeypatch.setattr(forecast, "forecast", fail)
    monkeypatch.setattr(Check, "jobs", [DictConfig({})])
    Announce().on_multirun_start(DictConfig({}))
    assert capsys.readouterr().err.startswith(f"warning: no forecast of the sweep: {reason}")
