"""Test that model folders and stores of earlier versions can be read."""

from __future__ import annotations

import gzip
import json
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from places import SAVED

from kinopoisk_ft.commands.report import main
from kinopoisk_ft.serving.predictor import Predictor

OLD = SAVED / "before_restructuring"
TEXTS = ["Прекрасный фильм, всем советую.", "Скучно и глупо, жаль времени."]


@pytest.mark.parametrize("folder", ["pooled_lora", "mamba", "tfidf"])
def test_model_folders_give_the_same_probabilities(folder: str) -> None:
    expected = json.loads((OLD / "probabilities.json").read_text("utf-8"))[folder]
    found = Predictor(OLD / folder, "cpu").probabilities(TEXTS)
    assert np.allclose(found, expected, atol=2e-6)


def test_a_store_is_reported(tmp_path: Path) -> None:
    store = tmp_path / "mlflow.db"
    store.write_bytes(gzip.decompress((OLD / "store.sqlite.gz").read_bytes()))
    shutil.copytree(OLD / "artifacts", tmp_path / "mlartifacts")
    # The file contains absolute paths.
    with closing(sqlite3.connect(store)) as database:
        for table, column in (("runs", "artifact_uri"), ("experiments", "artifact_location")):
            database.execute(
                f"UPDATE {table} SET {column} = replace({column}, '/tmp/oldfmt', ?)",
                (str(tmp_path),),
            )
        database.commit()
    report = tmp_path / "report"
    assert main(["--uri", f"sqlite:///{store}", "--output", str(report), "--no-log"]) == 0
    table = (report / "comparison.md").read_text("utf-8").replace("\\_", "_")
    rows = json.loads((report / "comparison.json").read_text("utf-8"))
    for approach in (" + LoRA r=", "mamba_scratch", "TF-IDF"):
        assert approach in table
    assert rows["failed"] == []
