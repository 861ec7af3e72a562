"""Check that the progress bar shows scores and the time left, on a terminal only."""

from __future__ import annotations

import io
import logging
import sys

import pytest

from kinopoisk_ft.training.progress import JOB, Progress


class Terminal(io.StringIO):
    """A stream that reports whether it is a terminal."""

    def __init__(self, is_terminal: bool) -> None:
        super().__init__()
        self.is_terminal = is_terminal

    def isatty(self) -> bool:
        return self.is_terminal


@pytest.fixture
def stream(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Terminal:
    for name in ("TTY_COMPATIBLE", "FORCE_COLOR", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("TERM", "xterm")
    return Terminal(request.param)


@pytest.mark.parametrize("stream", [True, False], indirect=True)
def test_progress_is_for_terminals(stream: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", stream)
    job = JOB.set("3/5")
    with Progress(0, 20) as progress:
        JOB.reset(job)
        progress.to(10, loss="0.5000")
        with progress.show_part("validation", 8, lambda: None) as advance:
            advance(3)
            progress._bars.refresh()
        progress.to(20, val_f1_weighted="0.9000")
    shown = stream.getvalue()
    if not stream.is_terminal:
        assert shown == ""
        return
    for part in (
        "3/5 training",
        "20/20",
        "time left",
        "loss 0.5000, val_f1_weighted 0.9000",
        "validation",
        "3/8",
    ):
        assert part in shown


@pytest.mark.parametrize("stream", [True], indirect=True)
def test_a_terminal_without_a_cursor_shows_no_bar(
    stream: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("TERM", "dumb")
    with Progress(0, 20) as progress:
        progress.to(20)
    assert stream.getvalue() == ""


@pytest.mark.parametrize("stream", [True], indirect=True)
def test_log_lines_appear_above_the_bar(stream: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", stream)
    handler = logging.StreamHandler(stream)
    monkeypatch.setattr(logging.root, "handlers", [handler])
    with Progress(0, 20) as progress:
        progress.to(5)
        logging.getLogger("test").error("the line")
        progress.to(20)
    assert handler.stream is stream
    # The whole line is written at once, and the bar is drawn again below it.
    before, line, after = stream.getvalue().partition("the line")
    assert line
    assert "\x1b[2K" in before
    assert after.startswith("\n")
    assert "20/20" in after


def test_part_can_be_stopped() -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    with (
        Progress(0, 20) as progress,
        pytest.raises(KeyboardInterrupt),
        progress.show_part("validation", 8, stop) as advance,
    ):
        advance(1)


def test_printed_lines_stay_in_a_redirected_output(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal(True))
    with Progress(0, 20):
        print("for the file")
    assert capsys.readouterr().out == "for the file\n"
