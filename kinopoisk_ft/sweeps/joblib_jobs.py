"""Jobs of a sweep in a pool of processes: a signal to the command stops them all, saved.

The launcher that Hydra finds is in `hydra_plugins`; the pool is joblib's.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from multiprocessing import active_children
from multiprocessing.resource_tracker import ensure_running
from typing import Any, TypeVar

import psutil
from hydra.types import TaskFunction

from kinopoisk_ft.errors import RunError
from kinopoisk_ft.training.signals import GRACE, NUMBERS, Stopped, StopSignals

T = TypeVar("T")
POLL = 0.1  # seconds between two looks for workers that were not told yet

_told: list[int] = []  # the signals that reached this process, a worker of the pool


def stoppable(launch: Callable[[], T]) -> T:
    """Return what starts and awaits the jobs; a signal is passed on to their processes.

    It runs in a thread in which signals are blocked. The workers inherit that, so none can end one
    that is still importing; and nothing is raised inside joblib, which would kill the workers.

    Raises:
        Stopped: a signal came, and no worker is left.
    """
    with ThreadPoolExecutor(1, initializer=_mask, initargs=(True,)) as thread, StopSignals():
        jobs = thread.submit(launch)
        try:
            return jobs.result()
        except Stopped as stop:
            try:
                _stop(jobs, stop.number)
            finally:  # also of a second signal
                for worker in _workers():
                    with suppress(psutil.NoSuchProcess):
                        worker.kill()
            raise


def _stop(jobs: Future[Any], number: int) -> None:
    """Pass the signal on to all workers, new ones too, and wait for the jobs to end."""
    told: set[psutil.Process] = set()
    end = time.monotonic() + GRACE
    while not jobs.done() and time.monotonic() < end:
        for worker in _workers() - told:
            told.add(worker)
            with suppress(psutil.NoSuchProcess):
                worker.send_signal(number)
        wait([jobs], POLL)


def _workers() -> set[psutil.Process]:
    found = set()
    for worker in active_children():
        with suppress(psutil.NoSuchProcess):
            found.add(psutil.Process(worker.pid))
    return found


class Pooled:
    """A task in a worker. A signal ends the job, and the worker begins no other.

    Hydra returns a failure of the task, whereas joblib kills all jobs for a KeyboardInterrupt.
    """

    def __init__(self, task: TaskFunction) -> None:
        self.task = task

    def __call__(self, config: Any) -> Any:
        """Run the job."""
        for number in NUMBERS:
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, lambda arrived, _: _told.append(arrived))
        _mask(False)
        try:
            with StopSignals():
                if _told:
                    raise Stopped(_told[0])
                return self.task(config)
        except Stopped as stop:
            _told.append(stop.number)
            raise RunError from stop


def _mask(block: bool) -> None:
    """Block the signals in this thread and in what it starts, or heed them; not on Windows."""
    if not hasattr(signal, "pthread_sigmask"):
        return
    if block:
        ensure_running()  # a helper of multiprocessing: starting later, it would unblock them
    signal.pthread_sigmask(signal.SIG_BLOCK if block else signal.SIG_UNBLOCK, NUMBERS)
