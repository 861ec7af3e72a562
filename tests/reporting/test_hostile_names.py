"""Test that names, labels and reviews in a store are shown as text in every format."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from mlflow.entities import Param
from report_store import Store, answers, report

from kinopoisk_ft.errors import UserError
from kinopoisk_ft.reporting.data_files import escape_latex
from kinopoisk_ft.reporting.plots.run_plots import plot_confusion
from kinopoisk_ft.text import escape_formula, replace_controls, to_one_line

SCRIPT = "<script>alert(1)</script>"
NAMES = (
    f"=1+1 {SCRIPT}\n| a | [x](javascript:alert(1)) $\\frac{{$ \x1b[2J\u202e",
    "@SUM(1)\" onload='alert(1)' `code` **bold** \\input{/etc/passwd} #&%~^ {{ 7*7 }} $a_{$",
)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a report on two approaches with these names, and the printed output."""
    folder = tmp_path_factory.mktemp("hostile")
    store = Store(folder)
    home = store.experiment(f"evil {SCRIPT} | \x1b[31m")
    for number, name in enumerate(NAMES):
        run_id = store.answered(home, ("bert", str(number), 10.0, 100, 200), 0, 2.0 + number)
        table = answers(0, 2.0 + number)
        table = table.rename(columns={"p_Good": f"p_Good$x^${SCRIPT}"})
        table["text"] = [f"{SCRIPT} \x1b]0;owned\x07 отзыв {i} {name}" for i in table["row"]]
        table["film"] = f"{SCRIPT}=1+1"
        file = folder / "predictions.parquet"
        table.to_parquet(file, index=False)
        store.client.log_artifact(run_id, str(file))
        for key in ("approach", "device", "precision", "overrides", "commit", "data"):
            store.client.set_tag(run_id, key, name if key != "data" else NAMES[0])
        store.client.log_batch(run_id, params=[Param("adapter.nice", name)])
    output = folder / "report"
    report(store, output, "--experiment", f"evil {SCRIPT} | \x1b[31m", figures=True)
    return output, name


def test_page_has_no_script_and_no_handler(page: tuple[Path, str]) -> None:
    text = (page[0] / "comparison.html").read_text(encoding="utf-8")
    assert SCRIPT not in text
    assert "&lt;script&gt;" in text
    assert not re.search(r"<[^>]*\son\w+\s*=", re.sub(r'"[^"]*"', '""', text))
    assert "{{ 7*7 }}" in text
    assert "\x1b" not in text
    for picture in re.findall(r"<svg.*?</svg>", text, re.DOTALL):
        ElementTree.fromstring(picture)


def test_markdown_rows_are_whole(page: tuple[Path, str]) -> None:
    text = (page[0] / "comparison.md").read_text(encoding="utf-8")
    assert "<script" not in text
    assert "](javascript" not in text
    assert "\x1b" not in text
    lines = [line for line in text.splitlines() if line.startswith("|")]
    for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        cells = {len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}
        assert len(cells) == 1
    assert any("alert" in line for line in lines)


def test_latex_has_no_command_of_a_name(page: tuple[Path, str]) -> None:
    text = (page[0] / "comparison.tex").read_text(encoding="utf-8")
    assert "\\input" not in text
    assert "\\frac" not in text
    assert r"\textbackslash{}input\{/etc/passwd\}" in text
    assert escape_latex("a_b%") == r"a\_b\%"


def test_tables_have_no_formula(page: tuple[Path, str]) -> None:
    for file in page[0].glob("*.csv"):
        with file.open(encoding="utf-8", newline="") as stream:
            for row in csv.reader(stream):
                for cell in row:
                    number = re.fullmatch(r"[-+]?[\d.]+(e[-+]?\d+)?", cell)
                    assert number or not cell.startswith(("=", "+", "-", "@"))
    assert escape_formula("=1+1") == "'=1+1"
    assert escape_formula("\r=1+1") == "'\r=1+1"
    assert [escape_formula(value) for value in (-1.5, "bert + lora", "", None)] == [
        -1.5, "bert + lora", "", None
    ]  # fmt: skip


def test_terminal_is_not_commanded(
    page: tuple[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert replace_controls("a\x1b[2Jb\nc\td\u202ee\ud800") == "a\ufffd[2Jb\nc\td\ufffde\ufffd"
    assert to_one_line(" a\r\nb\x00 ") == "a\ufffd b\ufffd"
    assert "\x1b" not in str(UserError("label '\x1b[2J'", where="a\x07"))


def test_class_names_are_no_formulas_of_a_picture(tmp_path: Path) -> None:
    """matplotlib reads text between two $ as a formula, and fails if it is not valid."""
    path = tmp_path / "a.svg"
    plot_confusion(np.eye(2, dtype=int), ["$\\frac{$", "$a_{$"], path)
    ElementTree.parse(path)
