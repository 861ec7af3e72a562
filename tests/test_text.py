"""Test when two dates, names or texts count as equal."""

from __future__ import annotations

import unicodedata

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kinopoisk_ft.data.duplicates import (
    _fold_end,
    drop_near_duplicates,
    fold_text,
    group_near_duplicates,
)
from kinopoisk_ft.data.split_rules import parse_date
from kinopoisk_ft.data.splits import group_linked_rows
from kinopoisk_ft.text import fold_name, hide_password


@pytest.mark.parametrize(
    ("text", "day"),
    [
        ("2009-03-07", "2009-03-07"), (" 2009-03-07T14:55:00 ", "2009-03-07"),
        ("07.03.2009", "2009-03-07"), ("7.3.2009, 14:55", "2009-03-07"),
        ("7 марта 2009 | 14:55", "2009-03-07"), ("1 мая 2010", "2010-05-01"),
        ("31 Августа 2011 года", "2011-08-31"), ("12 июня 2012", "2012-06-12"),
        ("12 июля 2012", "2012-07-12"), ("30 февраля 2012", None), ("31.02.2012", None),
        ("7 брюмера 2009", None), ("2009", None), ("", None), (None, None), (2009, None),
    ],
)  # fmt: skip
def test_dates(text: object, day: str | None) -> None:
    found = parse_date(text)
    assert (found.isoformat() if found else None) == day


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("Ёлки", "елки", True), ("«Брат»\xa02", "Брат 2", True), ("1408", "1408 (2007)", True),
        ("Ирония  судьбы (ТВ, 1975)", "ирония судьбы", True), ("Брат", "Брат 2", False),
        ("2012", "2012 [2009]", True), ("2012", "2009", False), ("Оно (сериал)", "Оно", False),
    ],
)  # fmt: skip
def test_names_of_films(one: str, other: str, same: bool) -> None:
    assert (fold_name(one) == fold_name(other)) is same
    assert fold_name("") is fold_name(None) is fold_name("(2009)") is None


@given(
    st.lists(
        st.tuples(st.none() | st.integers(0, 9), st.none() | st.integers(0, 9)),
        min_size=1,
        max_size=30,
    )
)
def test_linked_rows_are_connected_components(rows: list[tuple[int | None, int | None]]) -> None:
    groups = group_linked_rows([a for a, _ in rows], [b for _, b in rows])
    expected = list(range(len(rows)))
    # Propagate the smallest group number until nothing changes.
    for _ in rows:
        for i, first in enumerate(rows):
            for j, second in enumerate(rows):
                if any(a == b is not None for a, b in zip(first, second, strict=True)):
                    expected[i] = expected[j] = min(expected[i], expected[j])
    pairs = [(i, j) for i in range(len(rows)) for j in range(i)]
    assert all((groups[i] == groups[j]) == (expected[i] == expected[j]) for i, j in pairs)


LONG = " ".join(f"слово{n}" for n in range(60))


def test_near_duplicates() -> None:
    texts = [
        "Ещё раз: хорошо!", "еще   РАЗ: хорошо!\n", "еще раз: плохо!", LONG, f"{LONG} 9 из 10",
        f"А вот. {LONG}", LONG[:100], "!!!", "???", f"{LONG[:300]} иначе", f"другое {LONG[-130:]}",
    ]  # fmt: skip
    groups = group_near_duplicates(texts).tolist()
    assert groups[0] == groups[1] != groups[2]
    assert groups[3] == groups[4] == groups[5] == groups[9]
    assert len({groups[row] for row in (0, 2, 3, 6, 7, 8, 10)}) == 7


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("Фильм :)", "Фильм :(", False), ("10/10", "1010", False), ("👍", "👎", False),
        ("кино 👍", "кино 👎", False), ("1.0", "10", False), ("+", "-", False),
        ("да!", "да?", False),
        ("हिन्दी", "हन्द", False), ("ภาษาที่", "ภาษาทิ", False), ("🤷🏻", "🤷🏿", False),
        ("а б", "аб", False),
        ("Мой", "Мои\u0306", True), ("👍  👍", "👍 👍\n", True), ("Ёж", "еж", True),
        (LONG + " :)", LONG + " :(", True),
    ],
)  # fmt: skip
def test_short_texts_are_compared_with_punctuation(one: str, other: str, same: bool) -> None:
    first, second = group_near_duplicates([one, other])
    assert bool(first == second) is same


def letters_only(text: str) -> tuple[str, str]:
    text = unicodedata.normalize("NFC", text).casefold()
    letters = "".join(sign for sign in text if sign.isalnum()).replace("ё", "е")
    return letters[:120], letters[-120:]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.text(st.sampled_from("аёЁ :)👍й\u0306"), max_size=6), min_size=2, max_size=6))
def test_long_texts_are_compared_by_letters_only(pieces: list[str]) -> None:
    texts = [f"{piece} {LONG}" for piece in pieces] + [f"{LONG} {piece}" for piece in pieces]
    keys = [letters_only(text) for text in texts]
    expected = group_linked_rows([head for head, _ in keys], [tail for _, tail in keys])
    assert group_near_duplicates(texts).tolist() == expected.tolist()


def test_the_unicode_form_of_a_long_text_does_not_matter() -> None:
    text = "Мой любимый рейтинг: «Ёлки» и ещё İstanbul! " * 20
    for form in ("NFD", "NFC"):
        assert group_near_duplicates([text, unicodedata.normalize(form, text)]).tolist() == [0, 0]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["аё ", "ẞİ", "!?… ", "слово "]), st.integers(1, 150)),
                min_size=1, max_size=4))  # fmt: skip
def test_folding_the_ends_of_a_text_equals_folding_the_text(pieces: list[tuple[str, int]]) -> None:
    """The first and last letters are the same for the folded text and for its folded ends."""
    text = "".join(piece * count for piece, count in pieces)
    letters = fold_text(text)
    ends = [letters[:120] or None, letters[-120:] or None]
    assert [_fold_end(text, at_start) for at_start in (True, False)] == ends


def test_dropping_near_duplicates() -> None:
    frame = pd.DataFrame(
        {"text": list("абабва"), "label": ["Good", "Good", "Good", "Bad", "Bad", "Good"]}
    )
    kept, counts = drop_near_duplicates(frame)
    assert kept.index.tolist() == [0, 4]
    assert counts == {"dropped_conflicting_duplicates": 2, "dropped_near_duplicates": 2}


def test_examples_of_dropped_pairs(caplog: pytest.LogCaptureFixture) -> None:
    texts = [f"отзыв {row}" for row in range(200)]
    texts[7:9] = ["ОТЗЫВ 6", LONG]
    frame = pd.DataFrame({"text": texts, "label": "Good"})
    frame["place"] = [f"a.csv:{row}" for row in range(200)]
    drop_near_duplicates(frame)
    # One of 200.
    assert not caplog.text
    frame.loc[20:22, "text"] = LONG
    frame.loc[21, "label"] = "Bad"
    drop_near_duplicates(frame)
    *_, long_one, long_other, short_one, short_other = caplog.text.splitlines()
    assert "dropped 5 of 200 reviews as near-duplicates" in caplog.text
    assert (
        long_one
        == "  a.csv:8, Good: слово0 слово1 слово2 слово3 сл … лово56 слово57 слово58 слово59"
    )
    assert long_other.startswith("  a.csv:21, Bad: слово0")
    assert [short_one, short_other] == ["  a.csv:6, Good: отзыв 6", "  a.csv:7, Good: ОТЗЫВ 6"]


@pytest.mark.parametrize(
    ("text", "hidden"),
    [
        ("http://me:secret@host:5000", "http://me:***@host:5000"),
        ("http://me:se@cret@host", "http://me:***@host"),
        ("http://:secret@host", "http://:***@host"),
        ("postgresql+psycopg://me:sec/ret@host:5/db", "postgresql+psycopg://me:***@host:5/db"),
        ("postgresql://me:12/34@host/db", "postgresql://me:***@host/db"),
        ("mysql://me:sec ret@host/db?name=a@b", "mysql://me:***@host/db?name=a@b"),
        ("mysql://me:se@cret@host/db", "mysql://me:***@host/db"),
        ("mysql://host/db?user=me&password=secret&ssl=1", "mysql://host/db?user=me&password=***&ssl=1"),
        # A port that is not a number, which SQLAlchemy does not accept.
        ("http://me:secret@host:port", "http://me:***@host:port"),
        ("to http://me:secret@host/api failed: x@y", "to http://me:***@host/api failed: x@y"),
        *((same, same) for same in (
            "databricks", "databricks://profile:scope", "sqlite:////tmp/a:b/me@x.db", "./mlruns",
            "http://host:5000/runs/me@x", "sqlite:///C:/me@x.db", "write to me@host: now",
        )),
    ],
)  # fmt: skip
def test_passwords_are_hidden(text: str, hidden: str) -> None:
    assert hide_password(text) == hidden
