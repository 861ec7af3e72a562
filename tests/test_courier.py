"""The thread that brings events to a store."""

from __future__ import annotations

import threading

import pytest

from kinopoisk_ft.tracking import courier
from kinopoisk_ft.tracking.courier import LAST_FAILURES, Courier


@pytest.mark.parametrize(("more", "delivered"), [(LAST_FAILURES - 1, True), (LAST_FAILURES, False)])
def test_an_outage_before_the_end_leaves_the_last_tries(
    more: int, delivered: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(courier, "PAUSE", 0.001)
    monkeypatch.setattr(courier, "LONGEST_PAUSE", 0.001)
    failed, closing, left = threading.Event(), threading.Event(), [more]
    tries = 0

    def step() -> bool:
        nonlocal tries
        tries += 1
        if not closing.is_set():
            if tries > 2 * LAST_FAILURES:
                failed.set()
                closing.wait(10)  # fails once more, before the thread knows of the end
            raise OSError("out of reach")
        if left[0]:
            left[0] -= 1
            raise OSError("out of reach")
        return False

    one = Courier(step)
    assert one.start(10)
    assert failed.wait(10)
    monkeypatch.setattr(one._closing, "set", _both(one._closing, closing))
    assert one.close(10) is delivered


def _both(inner: threading.Event, outer: threading.Event) -> object:
    first = type(inner).set

    def set_both() -> None:
        first(inner)
        outer.set()

    return set_both
