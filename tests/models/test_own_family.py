"""Check that a model family in a user's folder needs two files and no change in the package."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from places import HELPERS

pytestmark = pytest.mark.slow

OWN = HELPERS / "own_family"
DATA = ["data=demo", "data.reviews=900", "data.max_length=64"]
POSITIVE = "Прекрасный фильм! Замечательные актёры, чудесная музыка. Всем советую."


def command(place: Path, module: str, *args: str) -> str:
    """Run a command in a separate process, with the user's module on the path."""
    done = subprocess.run(
        [sys.executable, "-m", module, *args],
        cwd=place, capture_output=True, text=True, encoding="utf-8", check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(OWN), *sys.path])},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("own_family")
    args = ["--config-dir", str(OWN / "conf"), "model=gru", *DATA, "trainer.epochs=4", "seed=0",
            "output_dir=run", "result_json=result.json"]  # fmt: skip
    command(place, "kinopoisk_ft", *args)
    return place


def test_it_learns(trained: Path) -> None:
    assert json.loads((trained / "result.json").read_text())["f1_weighted"] > 0.7


def test_a_saved_model_predicts_in_another_process(trained: Path) -> None:
    found = command(trained, "kinopoisk_ft.predict", "run/model", POSITIVE)
    assert "Good" in found
    card = json.loads((trained / "run" / "model" / "kinopoisk_ft.json").read_text())
    assert card["recipe"]["_target_"] == "gru.Gru"


def test_it_is_in_the_report(trained: Path) -> None:
    command(trained, "kinopoisk_ft.report", "--output", "report")
    assert "gru" in (trained / "report" / "comparison.md").read_text("utf-8")
