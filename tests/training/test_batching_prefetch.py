"""Check that prefetching keeps the order of the batches and leaves no thread running."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from kinopoisk_ft.training.batching import prefetch


def threads() -> int:
    return sum(thread.name.startswith("batches") for thread in threading.enumerate())


def test_items_come_in_order() -> None:
    with prefetch(range(100)) as items:
        assert list(items) == list(range(100))
    assert threads() == 0


def test_items_are_made_ahead_but_not_too_far() -> None:
    made: list[int] = []
    third = threading.Event()

    def source() -> Iterator[int]:
        for i in range(50):
            made.append(i)
            if i == 3:
                third.set()
            yield i

    with prefetch(source()) as items:
        assert next(items) == 0
        # One item is taken, and three are prepared.
        assert third.wait(10)
        assert len(made) <= 4
    assert threads() == 0


def test_an_error_is_raised_in_its_place() -> None:
    def source() -> Iterator[int]:
        yield 1
        raise ZeroDivisionError("in the maker")

    with prefetch(source()) as items:
        assert next(items) == 1
        with pytest.raises(ZeroDivisionError, match="in the maker"):
            next(items)
    assert threads() == 0


def test_leaving_early_closes_the_source() -> None:
    closed = threading.Event()

    def source() -> Iterator[int]:
        try:
            while True:
                yield 0
        finally:
            closed.set()

    with prefetch(source()) as items:
        assert next(items) == 0
    assert closed.is_set()
    assert threads() == 0
