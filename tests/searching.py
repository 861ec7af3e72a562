"""What the tests of searches share: a folder with reviews, a tiny network, and a search there."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from sweeping import DATA, write_reviews

from kinopoisk_ft import cli

SMALL = [
    "model=bert_scratch", "model.hidden_size=16", "model.num_layers=2", "model.vocab_size=120",
    "model.max_positions=64", "data.max_length=32", "trainer.precision=fp32",
    "trainer.device=cpu", "trainer.epochs=3",
]  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with reviews."""
    folder = tmp_path_factory.mktemp("search")
    write_reviews(folder)
    return folder


@pytest.fixture(autouse=True)
def _here(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setenv("KINOPOISK_FT_CACHE", str(place / "cache"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def search(*args: str, typed: Sequence[str] = ("sweep=lr_search",)) -> int:
    before = sys.argv
    try:
        return cli.main([*typed, *DATA, *args])
    finally:
        sys.argv = before
