"""Signals at the seams: after the last step, and what they raise in another process."""

from __future__ import annotations

import os
import pickle
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from short_fit import short_fit

from kinopoisk_ft.training import loop
from kinopoisk_ft.training.signals import Stopped, StopSignals


def test_a_signal_after_the_last_step_of_several_processes_stops_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = loop.Keeper.save_if_due

    def stop(keeper: loop.Keeper) -> None:
        saved(keeper)
        if keeper.state.step == keeper.state.steps:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(loop, "size", lambda: 2)
    monkeypatch.setattr(loop, "largest", lambda number: number)
    monkeypatch.setattr(loop.Keeper, "save_if_due", stop)
    with pytest.raises(Stopped):
        short_fit(tmp_path)


def test_what_stopped_a_worker_reaches_the_process_that_started_it() -> None:
    stopped = pickle.loads(pickle.dumps(Stopped(signal.SIGTERM, torn=True)))
    assert (type(stopped), stopped.number, stopped.exit_code, stopped.torn) == (
        Stopped, signal.SIGTERM, 143, True
    )  # fmt: skip
    assert str(stopped) == "stopped by SIGTERM"


@pytest.fixture
def heeded() -> Iterator[None]:
    """SIGINT is heeded, also where a shell started the tests in the background, ignoring it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heeded")
def test_signals_wait_for_the_step_and_a_second_does_not() -> None:
    before = signal.getsignal(signal.SIGTERM)
    done = []

    def step(*numbers: int) -> None:
        with StopSignals() as signals, signals.held():
            for number in numbers:
                os.kill(os.getpid(), number)
            done.append(numbers)

    with pytest.raises(Stopped) as first:
        step(signal.SIGUSR1)
    assert (done, first.value.torn, first.value.exit_code) == ([(signal.SIGUSR1,)], False, 143)
    with pytest.raises(Stopped) as second:
        step(signal.SIGTERM, signal.SIGINT)
    assert (len(done), second.value.torn, second.value.exit_code) == (1, True, 130)
    assert signal.getsignal(signal.SIGTERM) is before
