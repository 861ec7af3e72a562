"""Check cleaning, classes, limit and split, from a table to the three parts."""

from __future__ import annotations

import gzip
import importlib.util
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from places import ROOT
from sklearn.model_selection import train_test_split

from kinopoisk_ft.data.cleaning import clean_text
from kinopoisk_ft.data.hub import HubDataset
from kinopoisk_ft.data.kinopoisk import Kinopoisk
from kinopoisk_ft.data.local import LocalFile
from kinopoisk_ft.data.recipe import DataSplit
from kinopoisk_ft.data.splits import Shares, digest_rows, split_randomly
from kinopoisk_ft.errors import UserError

SHARES = {"test_size": 0.2, "val_size": 0.2, "seed": 42}
BASE: dict[str, Any] = {"limit": None, "classes": 2, "max_length": 256, "empty": "drop"}
GRADES = ["Good", "Bad", "Good", "Neutral", "Good"]


def reviews(number: int = 100) -> list[dict[str, Any]]:
    return [
        {
            "movie_name": f"Фильм {row % 7}",
            "author": "",
            "date": "",
            "title": None,
            "grade3": GRADES[row % 5],
            "grade10": 0.0,
            "content": f"\n\nотзыв {row}",
        }
        for row in range(number)
    ]


def kinopoisk(folder: Path, rows: list[dict[str, Any]], **options: Any) -> Kinopoisk:
    path = folder / "kinopoisk.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return Kinopoisk(path=str(path), **{**BASE, **options})


def local(folder: Path, table: dict[str, list[Any]], **options: Any) -> LocalFile:
    path = folder / "table.jsonl"
    pd.DataFrame(table, dtype=object).to_json(path, orient="records", lines=True)
    columns = {"text_column": "text", "label_column": "label", "classes": None}
    return LocalFile(path=str(path), **{**BASE, **columns, **options})


def every_row(split: DataSplit) -> pd.DataFrame:
    return pd.concat([split.train, split.val, split.test]).sort_values("row", ignore_index=True)


def test_split_has_the_sizes_and_rows_of_scikit_learn() -> None:
    labels = (np.random.default_rng(0).random(32_015) < 0.8).astype(np.int64)
    names = ("Bad", "Good")
    train, val, test = split_randomly(labels, names, Shares(**SHARES))
    assert (len(train), len(val), len(test)) == (20_489, 5_123, 6_403)
    stated = labels.tolist()
    rest, expected_test, y_rest, _ = train_test_split(
        list(range(32_015)), stated, test_size=0.2, random_state=42, stratify=stated
    )
    expected_train, expected_val = train_test_split(
        rest, test_size=0.2, random_state=42, stratify=y_rest
    )
    assert train.tolist() == expected_train
    assert val.tolist() == expected_val
    assert test.tolist() == expected_test


@pytest.mark.slow
def test_real_reviews_split_as_a_trainer_user_splits_them(shared: Path) -> None:
    source = shared / "bench" / "peer_hf_trainer.py"
    spec = importlib.util.spec_from_file_location("peer", source)
    assert spec is not None
    assert spec.loader is not None
    peer = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(peer)
    path = str(shared / "data" / "kinopoisk.jsonl.gz")
    split = Kinopoisk(path=path, **{**BASE, "limit": 1500}).load()
    expected = peer.load_split(path, 1500)
    for part, (texts, labels) in zip((split.train, split.val, split.test), expected, strict=True):
        assert part["text"].tolist() == texts
        assert part["label"].tolist() == labels


def test_kinopoisk_columns_counts_and_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        split = kinopoisk(tmp_path, reviews()).load()
    assert split.class_names == ("Bad", "Good")
    assert split.counts == {
        "rows_read": 100,
        "dropped_empty": 0,
        "dropped_neutral": 20,
        "beyond_limit": 0,
        "train": 51,
        "val": 13,
        "test": 16,
    }
    assert "rows_read 100, dropped_neutral 20, train 51" in caplog.text
    frame = every_row(split)
    assert list(frame) == ["text", "label", "row", "film", "author", "date", "title", "grade10"]
    assert frame["row"].tolist() == [row for row in range(100) if row % 5 != 3]
    assert frame["text"].tolist() == [f"\nотзыв {row}" for row in frame["row"]]
    assert frame["label"].tolist() == [int(GRADES[row % 5] == "Good") for row in frame["row"]]
    assert frame["film"].tolist() == [f"Фильм {row % 7}" for row in frame["row"]]
    assert frame["label"].dtype == frame["row"].dtype == np.int64
    assert split.train.index.tolist() == list(range(51))


def test_three_classes_and_limit(tmp_path: Path) -> None:
    split = kinopoisk(tmp_path, reviews(), classes=3, limit=60).load()
    assert split.class_names == ("Bad", "Neutral", "Good")
    frame = every_row(split)
    assert frame["row"].tolist() == list(range(60))
    assert frame["label"].tolist() == [
        ("Bad", "Neutral", "Good").index(GRADES[row % 5]) for row in range(60)
    ]
    assert split.counts["beyond_limit"] == 40


def test_limit_counts_rows_after_cleaning(tmp_path: Path) -> None:
    rows = reviews()
    rows[0]["content"], rows[1]["content"], rows[2]["content"] = "\n \t", None, ""
    split = kinopoisk(tmp_path, rows, limit=40).load()
    assert split.counts["dropped_empty"] == 3
    assert split.counts["dropped_neutral"] == 20
    usable = [row for row in range(3, 100) if row % 5 != 3]
    assert every_row(split)["row"].tolist() == usable[:40]


def test_empty_texts_can_be_refused(tmp_path: Path) -> None:
    rows = reviews()
    rows[0]["content"], rows[9]["content"] = "\n", None
    with pytest.raises(UserError, match="2 of 100 rows have no text") as caught:
        kinopoisk(tmp_path, rows, empty="refuse").load()
    path = tmp_path / "kinopoisk.jsonl"
    assert caught.value.where == f"{path}:1, {path}:10"
    assert "data.empty=drop" in (caught.value.fix or "")


@pytest.mark.parametrize(
    ("grade", "message"),
    [
        ("good", "1 rows have an unknown value in the column grade3, for example 'good'"),
        (7, "1 rows have an unknown value in the column grade3, for example '7'"),
        (None, "1 of 100 rows have no label in 'grade3'"),
    ],
)
def test_unknown_and_missing_grades(tmp_path: Path, grade: object, message: str) -> None:
    rows = reviews()
    rows[4]["grade3"] = grade
    with pytest.raises(UserError, match=message) as caught:
        kinopoisk(tmp_path, rows).load()
    assert caught.value.where == f"{tmp_path / 'kinopoisk.jsonl'}:5"


def test_digests_follow_the_data_and_the_split(tmp_path: Path) -> None:
    recipe = kinopoisk(tmp_path, reviews())
    split = recipe.load()
    packed = tmp_path / "packed.jsonl.gz"
    packed.write_bytes(gzip.compress((tmp_path / "kinopoisk.jsonl").read_bytes()))
    copy = Kinopoisk(path=str(packed), **BASE).load()
    assert (copy.source_digest, copy.split_digest) == (split.source_digest, split.split_digest)
    other_seed = kinopoisk(tmp_path, reviews(), split_seed=43).load()
    assert other_seed.source_digest == split.source_digest
    assert other_seed.split_digest != split.split_digest
    rows = reviews()
    rows[50]["content"] += "!"
    changed = kinopoisk(tmp_path, rows).load()
    assert changed.source_digest != split.source_digest
    assert changed.split_digest == split.split_digest
    one, two = np.array([1]), np.array([2])
    assert digest_rows(one, two, two) != digest_rows(two, one, two)


def test_local_table_sorts_or_takes_class_names(tmp_path: Path) -> None:
    table = {"text": [f"отзыв {n}" for n in range(60)], "label": [10.0, 9, "да"] * 20}
    assert local(tmp_path, table).load().class_names == ("9", "10", "да")
    given = local(tmp_path, table, class_names=["да", "9", "10"]).load()
    assert every_row(given)["label"].tolist() == [2, 1, 0] * 20


def test_local_table_keeps_what_it_knows_of_a_film(tmp_path: Path) -> None:
    table = {"text": list("абвгд") * 8, "label": [0, 1] * 20, "film": ["Чапаев"] * 40}
    table |= {"author": [None, ["а", "б"]] * 20, "grade10": ["7", "?"] * 20}
    frame = every_row(local(tmp_path, table).load())
    assert frame["film"].unique().tolist() == ["Чапаев"]
    assert frame["author"].dropna().unique().tolist() == ["['а', 'б']"]
    assert frame["grade10"].dropna().unique().tolist() == [7.0]


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        ([0, 1] * 20, {"classes": 3}, "data.classes=3, but there are 2 classes: 0, 1"),
        ([0, 1] * 20, {"class_names": ["0", "2"]}, "label '1' is not in data.class_names"),
        ([0, 1] * 19 + [0, None], {}, "1 of 40 rows have no label in 'label'"),
        ([0, 1] * 19 + [0, ""], {}, "1 of 40 rows have no label in 'label'"),
        ([0, 1] * 19 + [0, " "], {}, "1 of 40 rows have no label in 'label'"),
        ([0, 1] * 19 + [0, [1]], {}, "1 of 40 rows contain lists in the label column 'label'"),
        ([0, 1] * 20, {"label_column": "labels"}, "no column 'labels': did you mean 'label'"),
        ([0, 1] * 20, {"text_column": "content"}, "no column 'content'"),
        ([0] * 40, {}, "all 40 rows have the label '0'"),
        ([0] * 20 + [1] * 20, {"limit": 9}, "none of the 9 rows has the label '1'"),
        ([0] * 39 + [1], {}, "too few rows to put each class into train, val and test"),
        ([0] * 37 + [1] * 3, {}, "rows per class: 0 37, 1 3"),
        ([0, 1] * 20, {"class_names": ["0", "1", "2"]}, "none of the 40 rows has the label '2'"),
        ([0, 1] * 20, {"limit": 4}, "rows per class: 0 2, 1 2"),
    ],
)
def test_unusable_labels(
    tmp_path: Path, labels: list[Any], options: dict[str, Any], message: str
) -> None:
    table = {"text": [f"отзыв {n}" for n in range(40)], "label": labels}
    with pytest.raises(UserError, match=message) as caught:
        local(tmp_path, table, **options).load()
    assert caught.value.fix


def test_no_texts_at_all(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="none of the 0 rows has the label '0'"):
        local(tmp_path, {"text": [" "] * 9, "label": [0, 1, 2] * 3}).load()


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("empty", "dorp"),
        ("limit", 0),
        ("max_length", -1),
        ("test_size", 0.0),
        ("val_size", 1.5),
        ("classes", 4),
    ],
)
def test_impossible_options(tmp_path: Path, option: str, value: object) -> None:
    with pytest.raises(UserError) as caught:
        kinopoisk(tmp_path, reviews(), **{option: value}).load()
    assert caught.value.where == f"data.{option}"
    assert caught.value.fix


def test_a_source_that_is_not_named() -> None:
    with pytest.raises(UserError, match="data=file needs the path of a file") as caught:
        LocalFile(text_column="text", label_column="label", **BASE).load()
    assert "data.path=<file>" in (caught.value.fix or "")
    with pytest.raises(UserError, match="data=hub needs the name") as caught:
        HubDataset(text_column="text", label_column="label", **BASE).load()
    assert "data.name=<owner/name>" in (caught.value.fix or "")


def test_clean_text_takes_one_newline() -> None:
    assert [clean_text(text) for text in ("\n\nа\n", "а", "\n")] == ["\nа\n", "а", ""]


CONF = ROOT / "conf"


@pytest.mark.parametrize(
    ("group", "kind"), [("kinopoisk", Kinopoisk), ("file", LocalFile), ("hub", HubDataset)]
)
def test_each_group_builds_its_recipe(group: str, kind: type) -> None:
    with initialize_config_dir(str(CONF), version_base=None):
        cfg = compose(overrides=[f"+data={group}", "+seed=7"])
    recipe = instantiate(cfg.data)
    assert type(recipe) is kind
    assert (recipe.limit, recipe.max_length, recipe.split_seed) == (None, 256, 42)
    assert recipe.train_seed == 7
