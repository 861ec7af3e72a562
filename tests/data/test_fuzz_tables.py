"""Check that a file with any content gives a table or one UserError that names the file."""

from __future__ import annotations

import csv
import gzip
import io
import json
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kinopoisk_ft.data.local import LocalFile
from kinopoisk_ft.data.tables import SUFFIXES, read_table
from kinopoisk_ft.errors import UserError

QUICK = settings(max_examples=40, deadline=None, derandomize=True, database=None)
DEEP = settings(
    max_examples=1000, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)
OPTIONS: dict[str, Any] = {
    "limit": None, "classes": None, "max_length": 32, "empty": "drop",
    "text_column": "text", "label_column": "label",
}  # fmt: skip

GOOD = '{"text": "хороший фильм", "label": "Good", "n": 1}\n'.encode()
SCRAPS = [
    b"", b"\xef\xbb\xbf", b"\x00", b"\xff\xfe", b"\r", b"\r\n", b"\n", b'"', b'""', b",", b"\t",
    b"{", b"}", b"[", b"null", b"NaN", b"-Infinity", b"1e999", b"true", b'{"text": ', b"\\ud83d",
    b"text,label\n", b"text\tlabel\n", b"a,b\n", GOOD, GOOD[:-9], b"[" * 3000, b"9" * 5000,
    "фильм".encode("cp1251"), "фильм".encode("utf-16"), "\u2028\u0085\u202e".encode(),
    b'{"text": "a", "text": "b", "label": 1}\n', b'{"": {"a": [1, {"b": null}]}, "label": []}\n',
]  # fmt: skip
contents = st.lists(st.one_of(st.sampled_from(SCRAPS), st.binary(max_size=20)), max_size=12).map(
    b"".join
)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=4,
)
rows = st.lists(
    st.dictionaries(st.sampled_from(["text", "label", "film", "date", "grade10", "x"]), values),
    min_size=1,
    max_size=8,
)


def outcome(name: str, data: bytes) -> pd.DataFrame | None:
    """Read and split a file; return None if it is refused."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(data)
        try:
            table = read_table(path)
        except UserError:
            return None
        assert len(table.places()) == len(table.frame) > 0
        with suppress(UserError):
            LocalFile(path=str(path), **OPTIONS).load()
        return table.frame


def damage(data: bytes, cut: int, flips: list[tuple[int, int]]) -> bytes:
    """Truncate the bytes and change some of them."""
    changed = bytearray(data[: len(data) - cut % (len(data) or 1)])
    for place, value in flips:
        if changed:
            changed[place % len(changed)] = value
    return bytes(changed)


def parquet_file(**columns: Any) -> bytes:
    stream = io.BytesIO()
    pq.write_table(pa.table(columns), stream)
    return stream.getvalue()


WHOLE = {
    ".jsonl.gz": gzip.compress(GOOD * 9),
    ".parquet": parquet_file(text=["хорошо", "плохо"] * 9, label=["Good", "Bad"] * 9),
    ".csv": ("text,label\n" + '"хорошо, ""да""",1\n' * 9).encode(),
}


def check_bytes(suffix: str, data: bytes) -> None:
    outcome(f"a{suffix}", gzip.compress(data) if suffix.endswith(".gz") else data)


def check_damage(suffix: str, cut: int, flips: list[tuple[int, int]]) -> None:
    outcome(f"a{suffix}", damage(WHOLE[suffix], cut, flips))


def check_rows(found: list[dict[str, Any]]) -> None:
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in found)
    frame = outcome("a.jsonl", text.encode(errors="replace"))
    assert frame is None or len(frame) == len(found)


def check_cells(cells: list[list[str]]) -> None:
    """Check that rows written by the csv module, one per line, are read unchanged."""
    stream = io.StringIO(newline="")
    csv.writer(stream).writerows([["text", "label"], *cells])
    frame = outcome("a.csv", stream.getvalue().encode())
    assert frame is not None
    assert frame.to_numpy().tolist() == cells


FUZZED: dict[str, tuple[Callable[..., None], tuple[st.SearchStrategy[Any], ...]]] = {
    "bytes": (check_bytes, (st.sampled_from(SUFFIXES), contents)),
    "damage": (
        check_damage,
        (
            st.sampled_from(sorted(WHOLE)),
            st.integers(0, 200),
            st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 255)), max_size=4),
        ),
    ),
    "rows": (check_rows, (rows,)),
    "cells": (
        check_cells,
        (st.lists(st.lists(st.text(max_size=9), min_size=2, max_size=2), min_size=1, max_size=5),),
    ),
}


@pytest.mark.parametrize("what", FUZZED)
def test_any_file_quick(what: str) -> None:
    check, strategies = FUZZED[what]
    QUICK(given(*strategies)(check))()


@pytest.mark.slow
@pytest.mark.parametrize("what", FUZZED)
def test_any_file_deep(what: str) -> None:
    check, strategies = FUZZED[what]
    DEEP(given(*strategies)(check))()


def metadata(**huggingface: Any) -> bytes:
    table = pa.table({"label": [0, 1], "text": ["а", "б"]})
    stream = io.BytesIO()
    pq.write_table(
        table.replace_schema_metadata({b"huggingface": json.dumps(huggingface).encode()}), stream
    )
    return stream.getvalue()


@pytest.mark.parametrize(
    "info",
    [
        5, [], {"features": []}, {"features": {"label": 5}},
        {"features": {"label": {"_type": "ClassLabel"}}},
        {"features": {"none": {"_type": "ClassLabel", "names": ["a"]}}},
        {"features": {"label": {"_type": "ClassLabel", "names": {"a": 1}}}},
    ],
)  # fmt: skip
def test_odd_notes_of_a_parquet_file_are_passed_over(tmp_path: Path, info: Any) -> None:
    (tmp_path / "a.parquet").write_bytes(metadata(info=info))
    assert read_table(tmp_path / "a.parquet").frame["label"].tolist() == [0, 1]


def test_a_parquet_file_whose_text_is_not_unicode(tmp_path: Path) -> None:
    raw = pa.Array.from_buffers(
        pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\2\0\0\0"), pa.py_buffer(b"\xff\xfe")]
    )
    (tmp_path / "a.parquet").write_bytes(parquet_file(text=raw, label=["a"]))
    with pytest.raises(UserError, match="column 'text' contain bytes that are not UTF-8") as caught:
        LocalFile(path=str(tmp_path / "a.parquet"), **OPTIONS).load()
    assert caught.value.where == f"{tmp_path / 'a.parquet'} row 0"


def test_a_bomb_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kinopoisk_ft.data.tables.MIN_BOMB_BYTES", 2**16)
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(b"text,label\n" + b" " * 2**22))
    with pytest.raises(UserError, match="more than 100 times larger"):
        read_table(tmp_path / "a.csv.gz")
    monkeypatch.setattr("kinopoisk_ft.data.formats.MAX_CELLS", 1000)
    (tmp_path / "a.parquet").write_bytes(parquet_file(text=["а"] * 50_000, label=["б"] * 50_000))
    with pytest.raises(UserError, match="100,000 cells in"):
        read_table(tmp_path / "a.parquet")


def test_a_key_that_stands_twice(tmp_path: Path) -> None:
    """A repeated key does not show which of the two labels is meant."""
    for line in ('{"text": "а", "label": 1, "label": 0}', '{"a": {"b": 1, "b": 2}}'):
        (tmp_path / "a.jsonl").write_text(line)
        with pytest.raises(UserError, match="twice in one object"):
            read_table(tmp_path / "a.jsonl")


@pytest.mark.parametrize(
    "label", ["NaN", "Infinity", "-Infinity", "1e999", "null", '""', '" \\u00a0"']
)
def test_a_label_that_is_none(tmp_path: Path, label: str) -> None:
    (tmp_path / "a.jsonl").write_text(f'{{"text": "а", "label": {label}}}\n')
    with pytest.raises(UserError, match="1 of 1 rows have no label"):
        LocalFile(path=str(tmp_path / "a.jsonl"), **OPTIONS).load()


def test_labels_named_like_numbers_have_one_order(tmp_path: Path) -> None:
    names = ["nan", "10", "inf", "2", "b", "-1"]
    frame = pd.DataFrame({"text": [f"отзыв {i}" for i in range(60)], "label": names * 10})
    for seed in range(5):
        shuffled = frame.sample(frac=1, random_state=seed)
        shuffled.to_csv(tmp_path / "a.csv", index=False)
        data = LocalFile(path=str(tmp_path / "a.csv"), **OPTIONS)
        assert data.choose_classes(data.read()) == ("-1", "2", "10", "b", "inf", "nan")


def test_a_line_of_ten_megabytes(tmp_path: Path) -> None:
    text = "хорошее кино " * 420_000
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": text, "label": 1}) + "\n")
    assert read_table(tmp_path / "a.jsonl").frame["text"][0] == text
