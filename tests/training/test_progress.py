"""Check that the progress bar shows loss, score, speed and remaining time, only on a terminal."""

from __future__ import annotations

import io
import sys

import pytest

from kinopoisk_ft.training.progress import Progress


class Terminal(io.StringIO):
    """A stream that reports whether it is a terminal."""

    def __init__(self, is_terminal: bool) -> None:
        super().__init__()
        self.is_terminal = is_terminal

    def isatty(self) -> bool:
        return self.is_terminal


@pytest.mark.parametrize("is_terminal", [True, False])
def test_progress_is_for_terminals(monkeypatch: pytest.MonkeyPatch, is_terminal: bool) -> None:
    stream = Terminal(is_terminal)
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("COLUMNS", "120")
    with Progress(0, 20) as progress:
        progress.to(10, loss="0.5000")
        progress.to(20, val_f1_weighted="0.9000")
    shown = stream.getvalue()
    if not is_terminal:
        assert shown == ""
        return
    for part in ("20/20", "step/s", "loss=0.5000", "val_f1_weighted=0.9000", "<"):
        assert part in shown
