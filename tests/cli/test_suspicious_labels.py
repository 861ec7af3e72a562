"""Test that wrong labels are ranked first."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny
from sklearn.model_selection import StratifiedKFold

from kinopoisk_ft.commands.suspicious_labels import find_suspicious, main
from kinopoisk_ft.errors import UserError
from kinopoisk_ft.models.tfidf import Tfidf
from kinopoisk_ft.statistics.predictions import as_table

NAMES = ("Bad", "Good")
# The reviews are long, because short ones may be equal in both classes.
WRONG = [i for i, text in enumerate(tiny.reviews(180)[0]) if len(text.split()) > 22][::8]


@pytest.fixture(scope="module")
def folds(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Return the predictions of three folds; the labels of the rows in WRONG are flipped."""
    texts, labels = tiny.reviews(180)
    given = np.array(labels)
    given[WRONG] = 1 - given[WRONG]
    frame = pd.DataFrame({"text": texts, "label": given, "row": np.arange(180), "film": "A"})
    folder = tmp_path_factory.mktemp("folds")
    made = []
    for i, (train, test) in enumerate(StratifiedKFold(3).split(texts, given)):
        model = Tfidf(ngrams=1, min_df=1, sublinear_tf=True, C=10.0, class_weight=None)
        model.fit_texts([texts[j] for j in train], given[train], 2)
        part = frame.iloc[test]
        table = as_table(part, model.predict_proba(part["text"].tolist()), NAMES, frame.iloc[train])
        (folder / str(i)).mkdir()
        table.to_parquet(folder / str(i) / "predictions.parquet")
        made.append(folder / str(i))
    return made


def test_planted_errors_come_first(folds: list[Path]) -> None:
    found, count = find_suspicious(folds)
    assert count == 180
    assert len(WRONG) >= 5
    assert set(found["row"][: len(WRONG)]) == set(WRONG)
    first = found.iloc[0]
    assert first["label"] != first["suggested"]
    assert first["p_label"] < 0.5
    assert first["film"] == "A"
    assert first["text"] == tiny.reviews(180)[0][int(first["row"])]
    assert found["p_label"].is_monotonic_increasing


def test_one_run_checks_its_test_reviews(
    folds: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "found.csv"
    table = pd.read_parquet(folds[0] / "predictions.parquet")
    # The row breaks of the file must not be confused with line breaks in its cells.
    table = table.assign(text=table["text"] + "\rend", film=None)
    table.to_parquet(tmp_path / "predictions.parquet")
    assert main([str(tmp_path), "--output", str(output)]) == 0
    printed = capsys.readouterr().out
    written = pd.read_csv(output)
    assert f"{len(written)} of 60 labels are suspicious" in printed
    assert f"{len(written)} rows written to {output}" in printed
    assert int(written["row"][0]) in WRONG
    assert written["text"].str.endswith("\rend").all()
    assert written["film"].isna().all()


def test_predictions_are_not_overwritten(
    folds: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    file = folds[1] / "predictions.parquet"
    before = file.read_bytes()
    assert main([str(folds[0]), "--output", str(file)]) == 1
    assert "a file name that ends in .csv" in capsys.readouterr().err
    assert file.read_bytes() == before


def test_runs_that_do_not_fit_together_are_refused(folds: list[Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="two runs have the same test review"):
        find_suspicious([folds[0], folds[0]])
    with pytest.raises(UserError, match="the predictions cannot be read"):
        find_suspicious([tmp_path])
    table = pd.read_parquet(folds[0] / "predictions.parquet")
    other = table.rename(columns={"p_Good": "p_Fine"}).assign(row=table["row"] + 1000)
    other.to_parquet(tmp_path / "other.parquet")
    with pytest.raises(UserError, match="the runs have different classes"):
        find_suspicious([folds[0], tmp_path / "other.parquet"])


def break_type(data: bytes) -> bytes:
    """Flip a bit of a Parquet file so that a column has a type that PyArrow does not support."""
    # The types are in the footer, at the end of the file.
    for place in reversed(range(len(data))):
        changed = data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
        try:
            pq.read_table(pa.BufferReader(changed))
        except pa.ArrowNotImplementedError:
            return changed
        except (pa.ArrowException, OSError):
            continue
    raise AssertionError("no flipped bit leads to an unsupported type")


def test_damaged_predictions_are_refused(folds: list[Path], tmp_path: Path) -> None:
    """Not all errors of PyArrow and pandas are ValueErrors."""
    good, bad = folds[0] / "predictions.parquet", tmp_path / "bad.parquet"
    bad.write_bytes(break_type(good.read_bytes()))
    with pytest.raises(UserError, match=r"the predictions cannot be read: .*not implemented"):
        find_suspicious([bad])
    pq.write_table(pq.read_table(good).replace_schema_metadata({"pandas": "{}"}), bad)
    with pytest.raises(UserError, match="the predictions cannot be read"):
        find_suspicious([bad])
