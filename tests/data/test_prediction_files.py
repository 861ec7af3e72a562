"""Check that `predict` writes the user's columns exactly, or refuses before it predicts."""

from __future__ import annotations

import csv
import datetime
import decimal
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kinopoisk_ft.commands import predict
from kinopoisk_ft.data.prediction_files import prepare_output
from kinopoisk_ft.data.tables import read_table
from kinopoisk_ft.errors import UserError

ADDED = pd.DataFrame({"predicted_label": ["Bad", "Good"], "predicted_p_Good": [0.1 + 0.2, 1e-12]})
ROWS: list[dict[str, Any]] = [
    {"id": "a1", "text": "плохо\n, \"да\"", "score": 0.12345678901234566, "meta": {"k": [1, 2]},
     "n": 2**53 + 1, "big": 10**30, "b": True, "s": "0012"},
    {"id": 7, "text": "хорошо \u2028", "score": 1e-12, "meta": None, "n": None, "big": 0.5,
     "b": None, "s": ""},
]  # fmt: skip


def jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return path


def written(source: Path, output: Path) -> Path:
    prepare_output(read_table(source), output)(ADDED)
    return output


def with_added(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row | more for row, more in zip(rows, ADDED.to_dict("records"), strict=True)]


def test_json_values_are_exact(tmp_path: Path) -> None:
    output = written(jsonl(tmp_path / "a.jsonl", ROWS), tmp_path / "out.jsonl")
    lines = output.read_text(encoding="utf-8").split("\n")[:-1]
    assert [json.loads(line) for line in lines] == with_added(ROWS)


def test_csv_of_json_and_csv(tmp_path: Path) -> None:
    output = written(jsonl(tmp_path / "a.jsonl", ROWS), tmp_path / "out.csv")
    with output.open(newline="") as stream:
        first, second = csv.DictReader(stream)
    assert first["score"] == "0.12345678901234566"
    assert second["score"] == "1e-12"
    assert json.loads(first["meta"]) == ROWS[0]["meta"]
    assert (second["meta"], second["n"], first["n"]) == ("", "", str(2**53 + 1))
    assert second["predicted_p_Good"] == "1e-12"
    again = written(output.rename(tmp_path / "b.csv"), tmp_path / "again.csv")
    with again.open(newline="") as stream:
        header, *rows = csv.reader(stream)
    assert header == [*ROWS[0], *ADDED, *ADDED]
    assert rows[0][:8] == [*first.values()][:8]


def test_parquet_keeps_its_types(tmp_path: Path) -> None:
    table = pa.table({
        "text": ["плохо", "хорошо"],
        "film": pa.array([2**62 + 1, None]),
        "small": pa.array([1, None], pa.int8()),
        "vector": pa.array([[2**53 + 1, None], []], pa.list_(pa.int64())),
        "price": pa.array([decimal.Decimal("1.10"), None]),
        "day": pa.array([datetime.date(2010, 1, 2), None]),
        "raw": pa.array([b"\xff", None]),
    })  # fmt: skip
    pq.write_table(table, tmp_path / "a.parquet")
    found = pq.read_table(written(tmp_path / "a.parquet", tmp_path / "out.parquet"))
    assert found.select(table.column_names).equals(table)
    assert found["predicted_p_Good"].to_pylist() == ADDED["predicted_p_Good"].tolist()
    with pytest.raises(UserError, match="column 'raw' contains bytes that are not UTF-8") as caught:
        prepare_output(read_table(tmp_path / "a.parquet"), tmp_path / "out.jsonl")
    assert ".parquet" in (caught.value.fix or "")
    pq.write_table(table.drop_columns("raw"), tmp_path / "b.parquet")
    lines = written(tmp_path / "b.parquet", tmp_path / "out.jsonl").read_text().splitlines()
    assert json.loads(lines[0]) == with_added([{
        "text": "плохо", "film": 2**62 + 1, "small": 1, "vector": [2**53 + 1, None],
        "price": "1.10", "day": "2010-01-02",
    }, {}])[0]  # fmt: skip


def test_csv_with_each_kind_of_line_break(tmp_path: Path) -> None:
    texts = ["плохо\rа", "хо\r\nро\nшо\r"]
    source = jsonl(tmp_path / "a.jsonl", [{"text": text, "n": None} for text in texts])
    output = written(source, tmp_path / "out.csv")
    assert output.read_bytes().startswith(b"text,n,predicted_label,predicted_p_Good\n")
    assert read_table(output).frame["text"].tolist() == texts
    assert pd.read_csv(output)["predicted_label"].tolist() == ["Bad", "Good"]


@pytest.mark.parametrize("nullable", ["Int64", "int64"])
def test_parquet_of_pandas(tmp_path: Path, nullable: str) -> None:
    frame = pd.DataFrame({"text": ["плохо", "хорошо"], "n": pd.array([2**53 + 1, 2], nullable)})
    frame.to_parquet(tmp_path / "a.parquet")
    found = pd.read_parquet(written(tmp_path / "a.parquet", tmp_path / "out.parquet"))
    pd.testing.assert_frame_equal(found[["text", "n"]], frame)


@pytest.mark.parametrize(
    ("values", "types", "line"),
    [
        (["a1", 7], "strings and numbers", 2), ([2**70, 1], "numbers", None),
        ([2**53 + 1, 0.5], "numbers", 2), ([{"a": 1}, {"b": 1}], "objects", None),
        ([[1], "а"], "lists and strings", 2), ([{}, {}], "objects", None), ([True, 1], "true", 2),
    ],
)  # fmt: skip
def test_values_that_parquet_cannot_store_are_refused(
    tmp_path: Path, values: list[Any], types: str, line: int | None
) -> None:
    rows = [{"text": "да", "x": value} for value in values]
    path = jsonl(tmp_path / "a.jsonl", rows)
    with pytest.raises(UserError, match=f"the column 'x' contains {types}") as caught:
        prepare_output(read_table(path), tmp_path / "out.parquet")
    assert caught.value.where == (f"{path}:{line}" if line else str(path))
    assert ".jsonl" in (caught.value.fix or "")
    output = written(path, tmp_path / "out.jsonl")
    assert [json.loads(line) for line in output.read_text().splitlines()] == with_added(rows)


def test_json_that_parquet_can_keep(tmp_path: Path) -> None:
    rows = [{"text": "да", "n": 2**53 + 1, "x": 1, "l": [1]}, {"text": "нет", "n": None, "x": 0.5,
                                                               "l": []}]  # fmt: skip
    found = pq.read_table(written(jsonl(tmp_path / "a.jsonl", rows), tmp_path / "out.parquet"))
    assert found.to_pylist() == with_added(rows)
    assert found["n"].type == pa.int64()


def test_a_refusal_comes_before_the_model_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    jsonl(tmp_path / "a.jsonl", ROWS)
    output = ["--output", "out.parquet"]
    assert predict.main(["no model", "--input", "a.jsonl", *output]) == 1
    assert "the column 'id' contains strings and numbers" in capsys.readouterr().err
    assert not (tmp_path / "out.parquet").exists()


def test_the_input_is_read_as_in_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    quotes = {3: ('"', ""), 7: ("", '"')}
    texts = [f"отзыв {n}".join(quotes.get(n, ("", ""))) for n in range(20)]
    rows = "".join(f"{text}\t{n % 2}\n" for n, text in enumerate(texts))
    (tmp_path / "a.tsv").write_text("text\tlabel\n" + rows)
    jsonl(tmp_path / "numbers.jsonl", [{"text": 5}])
    for args, message in (
        (["a.tsv"], "--quoting none"),
        (["a.tsv", "--quoting", "none", "--text-column", "texts"], "did you mean 'text'"),
        (["numbers.jsonl"], "1 of 1 rows contain numbers in the text column 'text', for example 5"),
    ):
        assert predict.main(["no model", "--input", *args]) == 1
        assert message in capsys.readouterr().err
