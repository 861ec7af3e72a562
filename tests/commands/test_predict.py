"""Test that `kinopoisk-ft predict` imports only what a model needs, and prints safe text."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from kinopoisk_ft.cli import main
from kinopoisk_ft.models.card import Card
from kinopoisk_ft.models.tfidf import KIND, Tfidf

CODE = """
import sys
from kinopoisk_ft.commands.predict import main

code = main([sys.argv[1], "Хороший фильм"])
print(sorted({"mlflow", "peft", "transformers"} & set(sys.modules)))
sys.exit(code)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    model = Tfidf(ngrams=1, min_df=1, sublinear_tf=True, C=1.0, class_weight=None)
    model.fit_texts(["плохой фильм", "хороший фильм"] * 2, np.array([0, 1] * 2), 2).save(tmp_path)
    Card(KIND, ["Bad", "Good"], 0).write(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_tfidf_predicts_without_mlflow_peft_and_transformers(folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(folder)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "[]"), done.stderr
    assert done.stdout.splitlines()[1].split()[0] == "Good"


def test_class_names_cannot_control_the_terminal(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Card(KIND, ["Bad\x1b[2J", "Go\nod\x1b[2J"], 0).write(folder)
    assert main(["predict", str(folder), "Хороший фильм"]) == 0
    header, row = capsys.readouterr().out.splitlines()
    assert header.split() == ["label", "p_Bad\ufffd[2J", "p_Go", "od\ufffd[2J", "text"]
    assert row.startswith("Go od\ufffd[2J")
