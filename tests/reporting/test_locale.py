"""Test the report's phrases in two languages, and the format of numbers in each."""

from __future__ import annotations

import re
import string

import pytest

from kinopoisk_ft.errors import UserError
from kinopoisk_ft.reporting.columns import COLUMNS
from kinopoisk_ft.reporting.locale import LANGUAGES, Locale, phrases
from kinopoisk_ft.statistics.metrics import shown_in


def parts(text: str) -> set[str]:
    return {field for _, field, _, _ in string.Formatter().parse(text) if field}


def test_languages_have_the_same_keys_and_parts() -> None:
    en, ru = (phrases(language) for language in LANGUAGES)
    assert list(en) == list(ru)
    for key, text in en.items():
        assert isinstance(text, str), key
        assert isinstance(ru[key], str), key
        assert parts(text) == parts(ru[key]), key


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_column_and_metric_has_a_label(language: str) -> None:
    locale = Locale(language)
    for column in COLUMNS.values():
        assert locale.heading(column)
        if column.mark:
            assert locale(f"mark_{column.mark}")
            assert locale(f"{column.name}_from_best")
    assert locale.label("a new metric") == "a new metric"
    for metric in shown_in("slices"):
        assert locale(f"slices_{metric.name}")


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_phrase_calls_an_approach_better(language: str) -> None:
    """Only verdicts say whether chance explains a difference; no other phrase may judge."""
    judging = re.compile(r"\bbetter\b|outperform|\bbeats?\b|лучше |превос|превзо")
    assert not [key for key, text in phrases(language).items() if judging.search(text)]


def test_numbers_as_each_language_writes_them() -> None:
    en, ru = Locale("en"), Locale("ru")
    assert en.number(1234.56, 1) == "1,234.6"
    assert ru.number(-1234.56, 1) == "−1\N{NO-BREAK SPACE}234,6"
    assert en.score(-0.00001, signed=True) == "0.0000"
    assert en.percent(0.00167) == "0.17%"
    assert en.percent(-0.311, signed=True) == "−31%"
    assert [en.short(n) for n in (100, 2000, 1_500_000)] == ["100", "2\xa0K", "1.5\xa0M"]
    assert [en.number(None, 3), en.value(None, COLUMNS["train_seconds"])] == ["-", "-"]
    assert en.listed(["a", "b", "c"]) == "a, b and c"


def test_an_unknown_language_is_refused() -> None:
    with pytest.raises(UserError, match="not available in the language 'de'"):
        Locale("de")
