"""Check that tables are read exactly, and that errors name the place of a mistake."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kinopoisk_ft.data.tables import SUFFIXES, read_table
from kinopoisk_ft.errors import UserError

ROWS = [
    {"text": "\nХорошо,\n«очень» \u2028 да", "label": "Good", "n": 1},
    {"text": 'NA, "null"\tи 😀', "label": "Bad", "n": 2},
    {"text": "длинно " * 30_000, "label": "Good", "n": 3},
]


def write(path: Path, rows: list[dict[str, object]] = ROWS) -> Path:
    suffix = path.name.partition(".")[2]
    frame = pd.DataFrame(rows)
    if suffix == "parquet":
        frame.to_parquet(path)
        return path
    if suffix.startswith("json"):
        text = "".join(json.dumps(row, ensure_ascii=row["n"] == 2) + "\n" for row in rows)
    else:
        text = frame.to_csv(index=False, sep="\t" if suffix.startswith("tsv") else ",")
    data = text.encode()
    path.write_bytes(gzip.compress(data) if suffix.endswith("gz") else data)
    return path


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_each_format_gives_the_same_rows(tmp_path: Path, suffix: str) -> None:
    table = read_table(write(tmp_path / f"reviews{suffix}"))
    assert table.frame["text"].tolist() == [row["text"] for row in ROWS]
    assert table.frame["label"].tolist() == ["Good", "Bad", "Good"]
    assert [int(n) for n in table.frame["n"]] == [1, 2, 3]


def test_places_name_lines(tmp_path: Path) -> None:
    csv = write(tmp_path / "a.csv")
    assert read_table(csv).places() == [f"{csv}:{line}" for line in (2, 5, 6)]
    lines = tmp_path / "a.jsonl"
    lines.write_text('{"a": 1}\r\n\n   \n{"a": 2}', encoding="utf-8-sig")
    assert read_table(lines).places() == [f"{lines}:1", f"{lines}:4"]
    parquet = write(tmp_path / "a.parquet")
    assert read_table(parquet).places()[2] == f"{parquet} row 2"


def test_class_labels_of_parquet_become_names(tmp_path: Path) -> None:
    features = {"label": {"names": ["neg", "pos"], "_type": "ClassLabel"}, "n": {"_type": "Value"}}
    metadata = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    table = pa.table({"label": [1, 0, -1], "n": [1, 2, 3]}).replace_schema_metadata(metadata)
    pq.write_table(table, tmp_path / "a.parquet")
    frame = read_table(tmp_path / "a.parquet").frame
    assert frame["label"].tolist()[:2] == ["pos", "neg"]
    assert frame["label"].isna().tolist() == [False, False, True]
    assert frame["n"].tolist() == [1, 2, 3]


GOOD = '{"text": "да", "label": "Good"}\n'.encode()
# The bytes become names of tests. Without a time, they are equal in all worker processes.
PACKED = gzip.compress(GOOD, mtime=0)
BAD_FILES = [
    ("a.jsonl", GOOD + b'{"text": \n', "a.jsonl:2", "malformed JSON", "must be one object"),
    ("a.jsonl", GOOD * 2 + b"[1, 2]\n", "a.jsonl:3", "found a list", "must be one object"),
    ("a.jsonl", GOOD + b"\n" + b"null", "a.jsonl:3", "found a NoneType", "must be one object"),
    ("a.jsonl", GOOD + b"[" * 100_000, "a.jsonl:2", "malformed JSON", "must be one object"),
    ("a.jsonl", GOOD + rb'{"text": "\ud83d"}', "a.jsonl:2", "surrogate", "correct or remove"),
    ("a.jsonl", GOOD + "да".encode("cp1251"), "a.jsonl:2", "not UTF-8", "iconv -f cp1251"),
    ("a.csv", "text\nда\n".encode("cp1251"), "a.csv:2", "not UTF-8", "iconv -f cp1251"),
    ("a.jsonl", PACKED, "a.jsonl:1", "not UTF-8", "append .gz"),
    ("a.jsonl", b"", "a.jsonl", "empty", "use a file with reviews"),
    ("a.jsonl", b"{}\n", "a.jsonl", "no rows", "use a file with reviews"),
    ("a.csv", b"\n \n", "a.csv", "empty", "use a file with reviews"),
    ("a.csv", b"text,label\n", "a.csv", "no rows", "use a file with reviews"),
    ("a.csv", b"text,label\na,b\nc\n", "a.csv:3", "1 fields, but the header has 2", "quote"),
    ("a.csv", b'text,label\na,b\n"c,d\ne,f\n', "a.csv:3", "malformed row", "close the quotes"),
    ("a.csv", b"text,text\na,b\n", "a.csv:1", "'text' occurs twice", "rename"),
    ("a.jsonl.gz", PACKED[:-9], "a.jsonl.gz", "damaged", "download the file again"),
    ("a.jsonl.gz", GOOD, "a.jsonl.gz", "damaged", "download the file again"),
    ("a.jsonl.gz", PACKED[:12] + b"xx" * 9, "a.jsonl.gz", "damaged", "again"),
    ("a.parquet", b"PAR1" + b"\0" * 40, "a.parquet", "damaged", "download the file again"),
    ("a.parquet", GOOD, "a.parquet", "damaged", "download the file again"),
    ("a.xlsx", b"PK", "a.xlsx", "the file extension", ".jsonl"),
    ("reviews", GOOD, "reviews", "the file extension", ".jsonl"),
]


@pytest.mark.parametrize(("name", "data", "where", "what", "fix"), BAD_FILES)
def test_bad_file(tmp_path: Path, name: str, data: bytes, where: str, what: str, fix: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError) as caught:
        read_table(tmp_path / name)
    assert what in caught.value.what
    assert caught.value.where == str(tmp_path / where)
    assert fix in (caught.value.fix or "")


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the file does not exist") as caught:
        read_table(tmp_path / "none.jsonl")
    assert caught.value.where == str(tmp_path / "none.jsonl")
    with pytest.raises(UserError, match="the file does not exist"):
        read_table("~no_such_user/none.jsonl")
    with pytest.raises(UserError, match="cannot be read: Is a directory"):
        read_table(tmp_path)


def test_missing_column_names_those_found(tmp_path: Path) -> None:
    table = read_table(write(tmp_path / "a.csv"))
    with pytest.raises(UserError, match="no column 'texts': did you mean 'text'") as caught:
        table.column("texts", "set data.text_column")
    assert caught.value.where == f"{tmp_path / 'a.csv'}, columns text, label, n"
    assert caught.value.fix == "set data.text_column"
