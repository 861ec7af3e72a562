"""Fuzz tables, predictions and texts."""

from __future__ import annotations

import csv
import gzip
import io
from contextlib import suppress
from pathlib import Path
from typing import Any

import mutations as m
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import strategies as st
from mutations import Check

from kinopoisk_ft.data.local import LocalFile
from kinopoisk_ft.data.prediction_files import prepare_output
from kinopoisk_ft.data.tables import SUFFIXES, read_table
from kinopoisk_ft.errors import UserError

COLUMNS = ("text", "label", "film", "author", "date", "grade10", "row", "x")
TEXTS = ["хороший фильм", "плохой фильм", "8 из 10, хороший", ""]
rows = st.lists(
    st.dictionaries(st.sampled_from(COLUMNS), m.values | st.sampled_from(TEXTS)),
    min_size=1,
    max_size=8,
)


def draw_table(data: st.DataObject, suffix: str, rows: list[dict[str, Any]]) -> bytes:
    """Return rows in the format of a file extension."""
    plain = suffix.removesuffix(".gz")
    names = list(dict.fromkeys(name for row in rows for name in row))
    if plain == ".parquet":
        made = {}
        for name in names:
            cells = [row.get(name) for row in rows]
            try:
                made[name.encode(errors="replace").decode()] = pa.array(cells)
            except (pa.ArrowException, OverflowError, UnicodeEncodeError):
                made[name] = pa.array([str(cell).encode(errors="replace") for cell in cells])
        stream, table = io.BytesIO(), pa.table(made)
        notes = {b"huggingface": m.write_json({"info": {"features": data.draw(m.values)}})}
        with suppress(pa.ArrowException):
            pq.write_table(table.replace_schema_metadata(notes), stream)
        return stream.getvalue()
    if plain in (".csv", ".tsv"):
        lines = io.StringIO(newline="")
        writer = csv.writer(lines, delimiter="," if plain == ".csv" else "\t")
        writer.writerows([names, *([row.get(name) for name in names] for row in rows)])
        return lines.getvalue().encode("utf-8", "surrogatepass")
    return b"".join(m.write_json(row) + b"\n" for row in rows)


def tables(_: Path) -> Check:
    """Read tables of all formats, split them, and prepare to add predictions."""

    def check(data: st.DataObject, folder: Path) -> None:
        suffix = data.draw(st.sampled_from([*SUFFIXES, ".xlsx", ".txt"]))
        content = draw_table(data, suffix, data.draw(rows))
        match data.draw(st.sampled_from(["whole", "damaged", "scraps"])):
            case "damaged":
                content = m.change_bytes(data, content)
            case "scraps":
                content = data.draw(m.contents)
        content = gzip.compress(content) if suffix.endswith(".gz") else content
        path = folder / f"a{suffix}"
        path.write_bytes(content)
        options = {
            "limit": None, "max_length": 32, "classes": data.draw(st.sampled_from([None, 2])),
            "empty": data.draw(st.sampled_from(["drop", "refuse"])),
            "near_duplicates": data.draw(st.sampled_from(["drop", "keep"])),
            "split": data.draw(st.sampled_from(["random", "film", "author", "time"])),
            "text_column": "text", "label_column": "label",
        }  # fmt: skip
        output = folder / f"b{data.draw(st.sampled_from(['.csv', '.jsonl', '.parquet']))}"
        with suppress(UserError):
            LocalFile(path=str(path), quoting=data.draw(st.sampled_from(["auto", "csv", "none"])),
                      **options).load()  # fmt: skip
        with suppress(UserError):
            table = read_table(path)
            assert len(table.places()) == len(table.frame) > 0
            write = prepare_output(table, output)
            write(pd.DataFrame({"predicted": ["Good"] * len(table.frame)}))
            assert len(read_table(output).frame) == len(table.frame)
        assert path.read_bytes() == content

    return check


def predictions(_: Path) -> Check:
    """Compare files with predictions, as `kinopoisk-ft compare` does."""
    from kinopoisk_ft.commands.compare import main

    any_name = st.sampled_from(["Good", "Bad", 1, 0, "1.0", None, "\ud800", " "]) | m.scalars
    numbers = st.sampled_from([0, 1, 2, "3", 4.0, None, 2**63, -1, "x"])

    def check(data: st.DataObject, folder: Path) -> None:
        arguments = []
        names = data.draw(st.sampled_from([st.sampled_from(["Good", "Bad"])] * 3 + [any_name]))
        count = data.draw(st.integers(1, 12))
        labels = [data.draw(names) for _ in range(count)]
        for name in "ab" if data.draw(st.booleans()) else "abc":
            suffix = data.draw(st.sampled_from(SUFFIXES))
            optional = {"row": numbers, "film": m.scalars, "group": numbers}
            made = [{"label": label, "predicted": data.draw(names)} for label in labels]
            for column in data.draw(st.sets(st.sampled_from(sorted(optional)))):
                made = [row | {column: data.draw(optional[column])} for row in made]
            if not data.draw(st.integers(0, 4)):
                made = data.draw(rows)
            content = draw_table(data, suffix, made)
            if not data.draw(st.integers(0, 4)):
                content = m.change_bytes(data, content)
            content = gzip.compress(content) if suffix.endswith(".gz") else content
            (folder / f"{name}{suffix}").write_bytes(content)
            arguments.append(f"{name}{suffix}")
        if data.draw(st.booleans()):
            arguments += ["--margin", str(data.draw(st.floats()))]
        with suppress(SystemExit):
            main(arguments)

    return check


def texts(home: Path) -> Check:
    """Clean, shorten and tokenize any text, and divide it into windows."""
    import networks

    from kinopoisk_ft.data.cleaning import has_lone_surrogate
    from kinopoisk_ft.data.preprocessing import TRUNCATIONS, Preprocessing
    from kinopoisk_ft.data.tokens import encode, encode_with_spans, find_windows
    from kinopoisk_ft.data.written_grades import strip_scores
    from kinopoisk_ft.text import (
        clean_name,
        escape_formula,
        fold_name,
        replace_controls,
        shorten_paths,
        to_one_line,
    )

    tokenizers = [networks.make(kind)[3] for kind in ("bert_scratch", "mamba_scratch")]
    words = [
        "8 из 10",
        "10/10",
        "оценка: 7",
        "ставлю",
        "твёрдая семёрка",
        "балл",
        " ",
        "\n",
        "-",
        "9",
        "из",
        "*",
        "∞",
        "не ",
        "[SEP]",
        "/home/a",
        "(2009)",
        "é",
        "e\u0301",
        "1e9",
    ]
    pieces = st.builds(
        lambda text, times: text * times,
        st.sampled_from(words) | m.unicode_text,
        st.sampled_from([1, 1, 2, 3, 400, 4000]),
    )
    any_text = st.lists(pieces, max_size=6).map("".join)

    def check(data: st.DataObject, _: Path) -> None:
        text = data.draw(any_text)
        for clean in (clean_name, fold_name):
            name = clean(text)
            assert name is None or name.strip()
        assert len(strip_scores(text)) <= len(text)
        for function in (escape_formula, replace_controls, shorten_paths, to_one_line):
            assert isinstance(function(text), str)
        options = Preprocessing(
            max_length=data.draw(st.integers(1, 40)),
            truncation=data.draw(st.sampled_from(sorted(TRUNCATIONS))),
            max_characters=data.draw(st.none() | st.integers(1, 5000)),
            strip_scores=data.draw(st.booleans()),
            window_stride=data.draw(st.none() | st.integers(1, 40)),
            max_windows=data.draw(st.none() | st.integers(1, 4)),
            text_prefix=data.draw(st.sampled_from(["", "query: ", "а"])),
        )
        cleaned = options.clean(text)
        if has_lone_surrogate(cleaned) or not cleaned.strip():
            return
        cut = options.cut(cleaned)
        assert len(cut) <= (options.max_characters or len(cleaned))
        tokenizer = data.draw(st.sampled_from(tokenizers))
        with suppress(UserError):
            windows = find_windows(tokenizer, options)
            columns = encode([cleaned], tokenizer, options)
            ids, spans = encode_with_spans(cut, tokenizer, options)
            assert ids == columns["input_ids"][0]
            assert all(0 <= a <= b <= len(cut) for a, b in filter(None, spans))
            assert 0 <= columns["characters_seen"][0] <= columns["characters"][0]
            divided = windows.cut(ids) if windows else [ids]
            assert all(len(part) <= options.max_length for part in divided)
            if windows and windows.max_windows is None:
                assert {*ids} == {number for part in divided for number in part}

    return check
