"""Check which time the clock adds to each section."""

from __future__ import annotations

import time

from kinopoisk_ft.training.clock import Clock


def test_clock_charges_the_inner_section_alone() -> None:
    clock = Clock()
    with clock.section("train"):
        time.sleep(0.02)
        with clock.section("val"):
            time.sleep(0.05)
    whole = clock.seconds["train"] + clock.seconds["val"]
    assert clock.seconds["val"] > clock.seconds["train"] > 0
    time.sleep(0.01)
    assert whole == clock.seconds["train"] + clock.seconds["val"]
