"""Check that quoted fields with whole rows are refused, and that other quoted files are read."""

from __future__ import annotations

import csv
import logging
from pathlib import Path

import pytest

from kinopoisk_ft.data.local import LocalFile
from kinopoisk_ft.data.tables import read_table
from kinopoisk_ft.errors import UserError

ROWS = [
    [f"отзыв, {n}" if n % 2 else f"отзыв {n}", ("Bad", "Good")[n % 2], f"Фильм {n % 5}"]
    for n in range(40)
]
HEADER = ["text", "label", "film"]


def unquoted(path: Path, rows: list[list[str]], delimiter: str = "\t") -> Path:
    path.write_text("".join(delimiter.join(row) + "\n" for row in [HEADER, *rows]))
    return path


def with_quotes(first: int, last: int) -> list[list[str]]:
    """Build rows; one begins with a quote, and a later one ends with a quote."""
    rows = [list(row) for row in ROWS]
    rows[first][0] = '"' + rows[first][0]
    rows[last][0] += '"'
    return rows


@pytest.mark.parametrize(("first", "last"), [(5, 6), (5, 20), (0, 30)])
def test_quoted_fields_with_rows_are_refused(tmp_path: Path, first: int, last: int) -> None:
    path = unquoted(tmp_path / "a.tsv", with_quotes(first, last))
    with pytest.raises(UserError, match="1 fields that start with a quote") as caught:
        read_table(path)
    assert caught.value.where == f"{path}:{first + 2}-{last + 2}"
    assert "data.quoting=none (predict: --quoting none)" in (caught.value.fix or "")
    assert read_table(path, "none").frame.to_numpy().tolist() == with_quotes(first, last)
    assert len(read_table(path, "csv").frame) == 40 - (last - first)


def test_commas_and_a_quote_in_the_last_column(tmp_path: Path) -> None:
    rows = [[text.replace(",", ""), label, film] for text, label, film in ROWS]
    rows[3][2], rows[9][2] = '"Фильм 3', 'Фильм 4"'
    path = unquoted(tmp_path / "a.csv", rows, ",")
    with pytest.raises(UserError, match="contain several rows") as caught:
        read_table(path)
    assert caught.value.where == f"{path}:5-11"


def test_without_repeated_values_a_warning_names_the_lines(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "a.csv"
    path.write_text("text\n" + "".join(f"отзыв {n}\n" for n in range(9)) + '"да\nнет"\n')
    assert len(read_table(path).frame) == 10
    assert "1 rows span several lines, each of which could be a row" in caplog.text
    assert f"{path}:11-12" in caplog.text


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 0, 2), (1, 2, 0)])
@pytest.mark.parametrize("delimiter", [",", "\t"])
def test_quoted_texts_of_several_lines(
    tmp_path: Path, order: tuple[int, ...], delimiter: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Check texts with line breaks, commas and quotes that the csv module wrote."""
    texts = ["Хорошо, но\nскучно", '\n"Да",\nсказал он, и\r\nушёл', "а\n\nб, в, г", "одна строка"]
    rows = [[texts[n % 4], *row[1:]] for n, row in enumerate(ROWS)]
    rows = [[row[column] for column in order] for row in rows]
    path = tmp_path / ("a.csv" if delimiter == "," else "a.tsv")
    with path.open("w", newline="") as stream:
        csv.writer(stream, delimiter=delimiter).writerows([[HEADER[c] for c in order], *rows])
    with caplog.at_level(logging.WARNING):
        assert read_table(path).frame.to_numpy().tolist() == rows
    assert not caplog.text


@pytest.mark.parametrize("text", ['"да" и нет\tBad', '"да\tBad'])
def test_a_quote_that_is_malformed_names_the_option(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.tsv"
    path.write_text(f"text\tlabel\nнет\tGood\n{text}\n")
    with pytest.raises(UserError, match="malformed row") as caught:
        read_table(path)
    assert caught.value.where == f"{path}:3"
    assert "data.quoting=none" in (caught.value.fix or "")
    assert read_table(path, "none").frame["label"].tolist() == ["Good", "Bad"]


def test_the_option_reaches_the_file(tmp_path: Path) -> None:
    path = unquoted(tmp_path / "a.tsv", with_quotes(5, 20))
    options = {"limit": None, "classes": None, "max_length": 8, "empty": "drop"}
    columns = {"text_column": "text", "label_column": "label"}
    split = LocalFile(path=str(path), quoting="none", **columns, **options).load()
    assert split.counts["rows_read"] == 40
    with pytest.raises(UserError, match="quoting cannot be 'non'") as caught:
        LocalFile(path=str(path), quoting="non", **columns, **options)
    assert caught.value.fix == "did you mean 'none'?"
