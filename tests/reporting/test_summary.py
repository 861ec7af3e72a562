"""Test that the summary of a report fits a terminal, and that only terminals get bold text."""

from __future__ import annotations

import re
import sys

import pytest
from report_rows import trained

from kinopoisk_ft.reporting.document import Document, build
from kinopoisk_ft.reporting.locale import Locale
from kinopoisk_ft.reporting.runs import Collected
from kinopoisk_ft.reporting.summary import as_summary

EN = Locale("en")
NAME = "a-checkpoint-with-a-very-long-name"


@pytest.fixture(scope="module")
def document() -> Document:
    costs = {"train_seconds": 200.0, "trainable_parameters": 2000.0}
    runs = [trained(NAME, "lora", test_f1_weighted=0.95),
            trained("tfidf", test_f1_weighted=0.8, **costs)]  # fmt: skip
    return build(Collected(experiment="example", runs=runs), {}, None, EN)


def test_no_line_is_longer_than_80_columns_and_nothing_is_cut(document: Document) -> None:
    lines = as_summary(document, EN).splitlines()
    assert max(map(len, lines)) <= 80
    text = " ".join(lines)
    for part in ("0.950", "0.800", "majority class", "100.0", "verdict", "LoRA"):
        assert part in text
    assert NAME in re.sub(r"\W", "", text) or NAME.replace("-", "") in re.sub(r"\W", "", text)
    assert not re.search("…|\x1b", text)


def test_each_kind_of_advice_is_one_sentence(document: Document) -> None:
    advice = as_summary(document, EN).rpartition("\n\n")[2]
    assert advice.splitlines() == [
        "Best quality: a-checkpoint-with-a-very-long-name + LoRA, weighted F1 0.9500,",
        "accuracy 0.9000.",
        "Little time: a-checkpoint-with-a-very-long-name + LoRA trains fastest, in 100.0",
        "s; weighted F1 0.9500.",
        "Few trainable parameters: a-checkpoint-with-a-very-long-name + LoRA has the",
        "fewest, 1,000; weighted F1 0.9500.",
    ]


def test_a_terminal_shows_the_best_row_in_bold(
    document: Document, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    bold = as_summary(document, EN)
    assert re.search("\x1b\\[1m0.950", bold)
    assert not re.search("\x1b\\[1m0.800", bold)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: False)
    assert re.sub("\x1b\\[[0-9;]*m", "", bold).split() == as_summary(document, EN).split()
