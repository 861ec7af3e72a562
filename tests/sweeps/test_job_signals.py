"""Test that jobs of a launcher receive signals, and that a job that disappears is a failure."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from sweeping import DATA, write_reviews

from kinopoisk_ft import cli
from kinopoisk_ft.errors import RunError
from kinopoisk_ft.sweeps import joblib_jobs
from kinopoisk_ft.sweeps.joblib_jobs import WorkerTask
from kinopoisk_ft.sweeps.jobs import Outcome
from kinopoisk_ft.tracking.sweep import ParentRun
from kinopoisk_ft.training.signals import Stopped, StopSignals


def sweep(place: Path, monkeypatch: pytest.MonkeyPatch, run: Callable[..., object]) -> int:
    """Run a sweep of one job in this process, with `run` in place of its training."""
    monkeypatch.chdir(place)
    monkeypatch.setattr(sys, "argv", ["kinopoisk_ft"])
    monkeypatch.setattr("kinopoisk_ft.sweeps.jobs.run", run)
    return cli.main(["-m", *DATA, "model=tfidf", "tracking=none", "output_dir=out"])


def test_a_signal_is_raised_again_for_the_launcher_after_the_run_is_closed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(*_: object) -> None:
        raise Stopped(signal.SIGUSR2)

    write_reviews(tmp_path)
    received: list[int] = []
    before = signal.signal(signal.SIGUSR2, lambda number, frame: received.append(number))
    try:
        assert sweep(tmp_path, monkeypatch, stopped) == 143
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert received == [signal.SIGUSR2]
    shown = capsys.readouterr().out
    assert "jobs: 0 done, 0 skipped, 0 failed, 1 unfinished" in shown
    assert "with the same output_dir to resume" in shown
    # No launcher waits for the signal here, and the default handler would end the process.
    assert sweep(tmp_path, monkeypatch, stopped) == 143


def test_a_job_that_disappears_fails_the_sweep(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    Outcome(0, "unfinished", []).write(tmp_path)
    parent = ParentRun()
    parent.sweep_dir = tmp_path
    monkeypatch.setattr(ParentRun, "opened", parent)
    assert cli._close_sweep(0) == 1


def test_a_worker_that_was_stopped_begins_no_other_job() -> None:
    def stopped(_: object) -> None:
        begun.append(1)
        os.kill(os.getpid(), signal.SIGTERM)

    begun: list[int] = []
    # The context restores the signal handlers.
    with StopSignals():
        for _ in range(2):
            # Hydra returns this error, and joblib does not kill other workers because of it.
            with pytest.raises(RunError):
                WorkerTask(stopped)(None)
    assert begun == [1]
    joblib_jobs._received.clear()


WORKERS = """
import signal
from joblib import Parallel, delayed
from kinopoisk_ft.sweeps.joblib_jobs import run_stoppable

blocked = delayed(signal.pthread_sigmask)(signal.SIG_BLOCK, [])
print(*(len(found) for found in run_stoppable(lambda: Parallel(2)([blocked] * 2))))
print(len(signal.pthread_sigmask(signal.SIG_BLOCK, [])))
"""


def test_no_signal_ends_a_worker_that_is_starting() -> None:
    command = [sys.executable, "-c", WORKERS]
    assert subprocess.check_output(command, text=True, timeout=60) == "4 4\n0\n"
