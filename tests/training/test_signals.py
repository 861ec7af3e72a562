"""Check signals after the last step, in child processes, and repeated ones."""

from __future__ import annotations

import os
import pickle
import signal
from pathlib import Path

import pytest
from short_fit import short_fit

from kinopoisk_ft.training import loop, signals
from kinopoisk_ft.training.signals import Stopped, StopSignals


def test_a_signal_after_the_last_step_of_several_processes_stops_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = loop.CheckpointManager.save_if_due

    def stop(manager: loop.CheckpointManager) -> None:
        saved(manager)
        if manager.state.step == manager.state.steps:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(loop, "world_size", lambda: 2)
    monkeypatch.setattr(loop, "all_reduce_max", lambda number: number)
    monkeypatch.setattr(loop.CheckpointManager, "save_if_due", stop)
    with pytest.raises(Stopped):
        short_fit(tmp_path)


def test_stopped_exception_survives_pickling() -> None:
    stopped = pickle.loads(pickle.dumps(Stopped(signal.SIGTERM, mid_step=True)))
    assert (type(stopped), stopped.number, stopped.exit_code, stopped.mid_step) == (
        Stopped, signal.SIGTERM, 143, True
    )  # fmt: skip
    assert str(stopped) == "stopped by SIGTERM"


@pytest.mark.usefixtures("heeded")
def test_signals_wait_for_the_step_and_a_second_does_not() -> None:
    before = signal.getsignal(signal.SIGTERM)
    done = []

    def step(*numbers: int) -> None:
        with StopSignals() as signals, signals.defer():
            for number in numbers:
                os.kill(os.getpid(), number)
            done.append(numbers)

    with pytest.raises(Stopped) as first:
        step(signal.SIGUSR1)
    assert (done, first.value.mid_step, first.value.exit_code) == ([(signal.SIGUSR1,)], False, 143)
    with pytest.raises(Stopped) as second:
        step(signal.SIGTERM, signal.SIGINT)
    assert (len(done), second.value.mid_step, second.value.exit_code) == (1, True, 130)
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize(
    ("started", "seconds", "mid_step"),
    [(True, 60.0, False), (True, 0.0, True), (False, 60.0, True)],
    ids=["passed on", "later", "not started by another"],
)
def test_a_signal_that_is_passed_on_as_well_counts_once(
    monkeypatch: pytest.MonkeyPatch, started: bool, seconds: float, mid_step: bool
) -> None:
    if started:
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "test")
    monkeypatch.setattr(signals, "ECHO_SECONDS", seconds)
    monkeypatch.setattr(StopSignals, "_last_counted", {})
    with pytest.raises(Stopped) as stopped:
        stop_in_a_step()
    assert stopped.value.mid_step == mid_step
    assert StopSignals._last_counted.keys() == {signal.SIGTERM}


def stop_in_a_step() -> None:
    """Receive a signal twice within a step, and once more while the run is closed."""
    with StopSignals(), StopSignals() as inner:
        try:
            with inner.defer():
                os.kill(os.getpid(), signal.SIGTERM)
                os.kill(os.getpid(), signal.SIGTERM)
        except Stopped as stop:
            if not stop.mid_step:
                os.kill(os.getpid(), signal.SIGTERM)
            raise
