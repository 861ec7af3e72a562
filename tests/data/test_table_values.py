"""Check that each format gives the same classes, films and texts, with exact integers and bytes."""

from __future__ import annotations

import codecs
import gzip
import io
import json
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kinopoisk_ft.data.local import LocalFile
from kinopoisk_ft.data.tables import SUFFIXES, read_table
from kinopoisk_ft.errors import UserError
from kinopoisk_ft.text import clean_name

OPTIONS: dict[str, Any] = {
    "limit": None, "classes": None, "max_length": 32, "empty": "drop",
    "text_column": "text", "label_column": "label",
}  # fmt: skip
TEXTS = [f"отзыв {n}" for n in range(40)]


def write(path: Path, columns: dict[str, list[Any]]) -> Path:
    """Write a table with pandas, pyarrow or json, in the format that the name ends in."""
    if path.suffix == ".parquet":
        pq.write_table(pa.table(columns), path)
        return path
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    if ".json" in path.name:
        text = "".join(json.dumps(row) + "\n" for row in rows)
    else:
        frame = pd.DataFrame(columns, dtype=object)
        text = frame.to_csv(index=False, sep="\t" if ".tsv" in path.name else ",")
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def read(path: Path, **options: Any) -> pd.DataFrame:
    return LocalFile(path=str(path), **OPTIONS, **options).read()


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (["Bad", " Bad", "Good ", "Good\u00a0"], {"Bad", "Good"}),
        (["плохой", unicodedata.normalize("NFD", "плохой"), "х", "х"], {"плохой", "х"}),
        ([0.0, 1.0, 0.0, 1.0], {"0", "1"}),
        (["0", "0.0", "1", "1.00"], {"0", "1"}),
        ([0.5, 1.5, 0.5, 10.0], {"0.5", "1.5", "10"}),
        (["0.50", "1.5", "0.5", "10"], {"0.5", "1.5", "10"}),
        ([2**62, 2**62 + 1, 2**53 + 1, 2**53], {str(n) for n in
                                                (2**62, 2**62 + 1, 2**53 + 1, 2**53)}),
        (["007", "7", "1e3", "nan"], {"007", "7", "1e3", "nan"}),
        ([1e16, 1e-05, 1e16, 1e-05], {"10000000000000000", "0.00001"}),
    ],
)  # fmt: skip
def test_names_are_the_same_in_every_format(
    tmp_path: Path, suffix: str, labels: list[Any], classes: set[str]
) -> None:
    columns = {"text": TEXTS, "label": labels * 10, "film": labels * 10, "author": labels * 10}
    frame = read(write(tmp_path / f"a{suffix}", columns))
    for column in ("label", "film", "author"):
        assert set(frame[column]) == classes
        assert frame[column].tolist() == [clean_name(label) for label in labels * 10]


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("blank", ["", "  ", "\u00a0\t", None, float("nan")])
def test_blank_names_are_missing(tmp_path: Path, suffix: str, blank: Any) -> None:
    text = not isinstance(blank, float)
    names: list[Any] = ["а", blank] * 20 if text else [1.0, blank] * 20
    path = write(tmp_path / f"a{suffix}", {"text": TEXTS, "label": names, "film": names})
    with pytest.raises(UserError, match="20 of 40 rows have no label in 'label'"):
        read(path)
    path = write(path, {"text": TEXTS, "label": [0, 1] * 20, "film": names, "author": names})
    for column in ("film", "author"):
        assert read(path)[column].isna().tolist() == [False, True] * 20


def test_class_names_that_differ_in_case(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(tmp_path / "a.csv", {"text": TEXTS, "label": ["Bad", "bad", "Good", "Good"] * 10})
    recipe = LocalFile(path=str(path), **OPTIONS)
    recipe.choose_classes(recipe.read())
    assert "class names differ only in case: 'Bad' (10 rows), 'bad' (10 rows)" in caplog.text
    caplog.clear()
    given = LocalFile(path=str(path), **OPTIONS, class_names=["bad", "Bad ", "Good"])
    assert given.choose_classes(given.read()) == ("bad", "Bad", "Good")
    assert not caplog.text


def test_class_names_that_may_be_missing_values(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path / "a.csv", {"text": TEXTS, "label": ["Bad", "NaN", "Good", "Good"] * 10})
    recipe = LocalFile(path=str(path), **OPTIONS)
    recipe.choose_classes(recipe.read())
    assert "10 rows have the label 'NaN'; if it means that they have no label" in caplog.text


def test_integers_of_parquet_stay_integers(tmp_path: Path) -> None:
    films = [None, *range(2**53, 2**53 + 19), *range(2**62, 2**62 + 20)]
    path = write(tmp_path / "a.parquet", {"text": TEXTS, "label": [0, 1] * 20, "film": films})
    assert read_table(path).frame["film"].tolist() == films
    assert read(path)["film"].dropna().tolist() == [str(film) for film in films[1:]]
    split = LocalFile(path=str(path), **OPTIONS, split="film").load()
    parts = pd.concat([split.train, split.val, split.test])
    assert parts.dropna(subset="film").groupby("group")["film"].nunique().eq(1).all()
    assert parts["group"].nunique() == 40


def test_bytes_are_decoded(tmp_path: Path) -> None:
    columns = {"text": TEXTS, "label": ["Плохо", "Хорошо"] * 20, "film": ["Брат"] * 40}
    path = write(tmp_path / "a.parquet", {
        name: [value.encode() for value in values] for name, values in columns.items()
    })  # fmt: skip
    frame = read(path)
    for name, values in columns.items():
        assert frame[name].tolist() == values


@pytest.mark.parametrize("column", ["text", "label", "film"])
def test_bytes_that_are_not_utf8_are_named(tmp_path: Path, column: str) -> None:
    columns: dict[str, list[Any]] = {"text": TEXTS, "label": ["а"] * 40, "film": ["б"] * 40}
    columns[column] = [b"a"] * 39 + ["плохо".encode("cp1251")]
    path = write(tmp_path / "a.parquet", columns)
    with pytest.raises(
        UserError, match=f"column '{column}' contain bytes that are not UTF"
    ) as caught:
        read(path)
    assert caught.value.where == f"{path} row 39"


@pytest.mark.parametrize(
    ("values", "types"),
    [
        ([5, 6.5], "numbers"), ([[1], ["а"]], "lists"), ([{"а": 1}, {}], "objects"),
        ([True, False], "true or false"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_a_text_column_of_other_values(
    tmp_path: Path, suffix: str, values: list[Any], types: str
) -> None:
    if suffix == ".parquet" and types == "lists":
        values = [[1], [2]]
    columns: dict[str, list[Any]] = {"text": [*values, None], "label": [0, 1, 0]}
    path = write(tmp_path / f"a{suffix}", columns)
    with pytest.raises(
        UserError, match=f"2 of 3 rows contain {types} in the text column"
    ) as caught:
        read(path)
    first = f"{path}:1" if suffix == ".jsonl" else f"{path} row 0"
    assert (caught.value.where or "").startswith(first)
    assert "data.text_column" in (caught.value.fix or "")


def test_texts_that_are_all_numbers(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    read(write(tmp_path / "a.csv", {"text": ["1", "2.5"], "label": [0, 1]}))
    assert "all texts in the column 'text' are numbers, for example 1" in caplog.text


@pytest.mark.parametrize("value", [[0], {"a": 1}, []])
@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_a_label_of_several_values(tmp_path: Path, suffix: str, value: Any) -> None:
    path = write(tmp_path / f"a{suffix}", {"text": TEXTS, "label": [value] * 40})
    kind = "objects" if isinstance(value, dict) else "lists"
    with pytest.raises(
        UserError, match=f"40 of 40 rows contain {kind} in the label column 'label'"
    ):
        read(path)


def test_a_column_that_is_there_twice(tmp_path: Path) -> None:
    table = pa.Table.from_arrays([pa.array(["а"])] * 3, names=["text", "label", "text"])
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(UserError, match="column name 'text' occurs twice"):
        read_table(tmp_path / "a.parquet")


def test_column_names_by_their_unicode_form(tmp_path: Path) -> None:
    columns = {unicodedata.normalize("NFD", "отзывй"): TEXTS, "метка ": [0, 1] * 20}
    path = write(tmp_path / "a.csv", columns)
    names = {"text_column": "отзывй", "label_column": "метка"}
    assert LocalFile(path=str(path), **{**OPTIONS, **names}).read()["text"].tolist() == TEXTS


ENCODINGS: dict[str, Callable[[str], bytes]] = {
    "utf-8": lambda text: codecs.BOM_UTF8 + text.encode(),
    "utf-16le": lambda text: codecs.BOM_UTF16_LE + text.encode("utf-16le"),
    "utf-16be": lambda text: codecs.BOM_UTF16_BE + text.encode("utf-16be"),
    "utf-32le": lambda text: codecs.BOM_UTF32_LE + text.encode("utf-32le"),
    "utf-32be": lambda text: codecs.BOM_UTF32_BE + text.encode("utf-32be"),
}


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("suffix", [".tsv", ".csv.gz", ".jsonl", ".json.gz"])
def test_byte_order_marks(tmp_path: Path, encoding: str, suffix: str) -> None:
    columns = {"text": ["хорошо 😀", "плохо\u2028"], "label": ["Good", "Bad"]}
    plain = write(tmp_path / f"plain{suffix}", columns).read_bytes()
    text = (gzip.decompress(plain) if suffix.endswith("gz") else plain).decode()
    data = ENCODINGS[encoding](text)
    path = tmp_path / f"a{suffix}"
    path.write_bytes(gzip.compress(data) if suffix.endswith("gz") else data)
    assert read_table(path).frame.to_dict("list") == columns


def test_utf16_that_is_damaged_or_has_no_mark(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    whole = ENCODINGS["utf-16le"]("text,label\nда,1\nнет,0\n")
    path.write_bytes(whole[:-3])
    with pytest.raises(UserError, match="not UTF-16: truncated data") as caught:
        read_table(path)
    assert caught.value.where == f"{path}:3"
    assert "1251" not in (caught.value.fix or "")
    for data in (whole[2:], "text,label\nда,1\n".encode("utf-16be")):
        path.write_bytes(data)
        with pytest.raises(UserError, match="without a byte order mark"):
            read_table(path)


def test_values_of_parquet_as_pyarrow_reads_them(tmp_path: Path) -> None:
    stream = io.BytesIO()
    table = pa.table({
        "text": pa.array(["а", "б", None]).dictionary_encode(),
        "n": pa.array([2**63 - 1, None, -(2**53) - 1]),
        "u": pa.array([2**64 - 1, None, 0], pa.uint64()),
        "x": pa.array([1e-12, None, float("inf")]),
        "b": pa.array([True, None, False]),
        "when": pa.array([0, None, 10**15], pa.timestamp("us")),
    })  # fmt: skip
    pq.write_table(table, stream)
    (tmp_path / "a.parquet").write_bytes(stream.getvalue())
    assert read_table(tmp_path / "a.parquet").frame.to_dict("list") == table.to_pydict()
    assert clean_name(np.float64(2)) == clean_name(np.int64(2)) == "2"
