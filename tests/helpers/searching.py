"""Run a search with a tiny network in the working folder."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from sweeping import DATA

from kinopoisk_ft import cli

SMALL = [
    "model=bert_scratch", "model.hidden_size=16", "model.num_layers=2", "model.vocab_size=120",
    "model.max_positions=64", "data.max_length=32", "trainer.precision=fp32",
    "trainer.device=cpu", "trainer.epochs=3",
]  # fmt: skip


def search(*args: str, typed: Sequence[str] = ("sweep=lr_search",)) -> int:
    before = sys.argv
    try:
        return cli.main([*typed, *DATA, *args])
    finally:
        sys.argv = before
