"""Check that windows cover every token of a review, and the tokens of reviews for windows."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st

from kinopoisk_ft.data.preprocessing import Preprocessing
from kinopoisk_ft.data.tokens import find_windows, tokenize
from kinopoisk_ft.data.windows import Windows
from kinopoisk_ft.errors import UserError
from kinopoisk_ft.models.tokenizers import load_tokenizer

TEXT = " ".join([tiny.GOOD, tiny.BAD] * 4)


@given(
    tokens=st.integers(0, 300),
    room=st.integers(1, 40),
    stride=st.integers(1, 40) | st.none(),
    special=st.tuples(st.integers(0, 2), st.integers(0, 2)),
)
def test_windows_cover_every_token(
    tokens: int, room: int, stride: int | None, special: tuple[int, int]
) -> None:
    left, right = special
    stride = None if stride is None else min(stride, room)
    windows = Windows.of(room, stride, None, left, right)
    ids = [*[-1] * left, *range(tokens), *[-2] * right]
    lengths = np.array([len(ids)])
    parts = windows.cut(ids)
    assert len(parts) == windows.count(lengths)[0] == len(windows.ranges(lengths)[0])
    assert sum(map(len, parts)) == windows.count_tokens(lengths)[0]
    texts = [part[left : len(part) - right] for part in parts]
    for part in parts:
        assert part[:left] == [-1] * left
        assert part[len(part) - right :] == [-2] * right
    assert sorted({token for text in texts for token in text}) == list(range(tokens))
    if len(parts) > 1:
        assert all(len(text) == room for text in texts)
        starts = np.array([text[0] for text in texts])
        assert np.diff(starts).max() <= windows.stride
        # One window less could not cover the review with this stride.
        assert room + (len(parts) - 2) * windows.stride < tokens


def test_numbers_of_windows_continue_over_reviews() -> None:
    windows = Windows.of(4, 4, None, 1, 1)
    assert windows.ranges(np.array([6, 7, 3, 14])) == [
        range(1), range(1, 3), range(3, 4), range(4, 7)
    ]  # fmt: skip


def test_a_review_beyond_the_last_window_keeps_its_start_and_its_end() -> None:
    tokenizer = load_tokenizer(tiny.bert())
    preprocessing = Preprocessing(12, "windows", window_stride=10, max_windows=3)
    (ids,) = (found := tokenize([TEXT], tokenizer, preprocessing)).input_ids
    (whole,) = tokenize([TEXT], tokenizer, Preprocessing(12, "windows")).input_ids
    # A quarter of the 30 tokens that three windows cover, rounded up, and the two special tokens.
    assert ids == [*whole[:9], *whole[-23:]]
    windows = find_windows(tokenizer, preprocessing)
    assert windows is not None
    assert len(windows.cut(ids)) == 3
    assert 0 < found.seen.characters_seen < found.seen.characters == len(TEXT)
    assert found.seen.tokens == len(whole) - 2


def test_windows_read_the_whole_text() -> None:
    tokenizer = load_tokenizer(tiny.bert())
    found = tokenize([TEXT, "фильм"], tokenizer, Preprocessing(12, "windows"))
    assert found.seen.metrics()["characters_seen_share"] == 1
    assert found.truncated.tolist() == [0, 0]
    assert found.input_ids[0] == tokenizer(TEXT)["input_ids"]


def test_a_cached_text_depends_on_the_windows() -> None:
    tokenizer = load_tokenizer(tiny.bert())
    lengths = [
        len(tokenize([TEXT], tokenizer, preprocessing).input_ids[0])
        for preprocessing in (
            Preprocessing(12, "windows", window_stride=10, max_windows=2),
            Preprocessing(12, "windows", window_stride=5, max_windows=2),
            Preprocessing(12, "windows", window_stride=5, max_windows=3),
        )
    ]
    assert lengths == [22, 17, 22]


def test_a_stride_that_skips_tokens_is_refused() -> None:
    with pytest.raises(
        UserError, match=r"data.window_stride=11 would skip tokens, because a window has only"
    ):
        find_windows(load_tokenizer(tiny.bert()), Preprocessing(12, "windows", window_stride=11))


@pytest.mark.parametrize("folder", [tiny.bert, tiny.mamba])
def test_every_window_starts_with_the_prefix(folder: Callable[[], str]) -> None:
    tokenizer = load_tokenizer(folder())
    preprocessing = Preprocessing(32, "windows", max_windows=None, text_prefix="фильм ")
    ids = tokenize([TEXT], tokenizer, preprocessing).input_ids[0]
    assert ids == tokenizer([f"фильм {TEXT}"])["input_ids"][0]
    windows = find_windows(tokenizer, preprocessing)
    assert windows is not None
    parts = windows.cut(ids)
    assert len(parts) > 3
    assert all(len(part) == 32 for part in parts)
    start = ids[: windows.left]
    assert tokenizer.decode(start).replace("[CLS]", "").replace(" ", "") == "фильм"
    assert all(part[: windows.left] == start for part in parts)
