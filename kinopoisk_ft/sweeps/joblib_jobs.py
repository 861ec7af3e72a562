"""Run the jobs of a sweep in a process pool."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from multiprocessing import active_children
from multiprocessing.resource_tracker import ensure_running
from typing import Any, TypeVar

import psutil
from hydra.core.utils import JobReturn
from hydra.types import TaskFunction
from joblib import effective_n_jobs

from kinopoisk_ft.errors import RunError
from kinopoisk_ft.training.signals import GRACE_SECONDS, NUMBERS, Stopped, StopSignals

T = TypeVar("T")
# Seconds between two searches for workers that have not received the stop signal yet.
POLL = 0.1

# Stop signals that this worker process has received.
_received: list[int] = []


def count_parallel_jobs(options: Mapping[str, Any]) -> int:
    """Return how many jobs run at the same time."""
    return int(effective_n_jobs(options["n_jobs"]))


def launch_jobs(
    context: Mapping[str, Any],
    options: Mapping[str, Any],
    job_overrides: Sequence[Sequence[str]],
    first: int,
) -> Sequence[JobReturn]:
    """Run the jobs with Hydra's joblib launcher, and return the results in order.

    Args:
        context: the keyword arguments of `Launcher.setup`.
        options: the options of Hydra's joblib launcher.
        first: the number of the first job.

    Raises:
        Stopped: a stop signal arrived.
    """
    # The launcher is an optional package (extra `parallel`).
    from hydra_plugins.hydra_joblib_launcher.joblib_launcher import JoblibLauncher

    launcher = JoblibLauncher(**options)
    if count_parallel_jobs(options) == 1:
        # The jobs run in this process and receive signals themselves.
        launcher.setup(**context)
        return list(launcher.launch(job_overrides, first))
    launcher.setup(**{**context, "task_function": WorkerTask(context["task_function"])})
    return list(run_stoppable(lambda: launcher.launch(job_overrides, first)))


def run_stoppable(launch: Callable[[], T]) -> T:
    """Call `launch` in a second thread, and forward stop signals to its worker processes.

    In the main thread, a stop signal would raise an exception inside joblib, which would then kill
    all workers.

    Raises:
        Stopped: a stop signal arrived, and all workers have ended.
    """
    # New workers inherit the blocked signals, so that no signal ends a worker during its imports.
    with ThreadPoolExecutor(1, initializer=_block_signals) as thread, StopSignals():
        jobs = thread.submit(launch)
        try:
            return jobs.result()
        except Stopped as stop:
            try:
                _stop_workers(jobs, stop.number)
            finally:
                # Kill workers that are left after the time limit or a second signal.
                for worker in _find_workers():
                    with suppress(psutil.NoSuchProcess):
                        worker.kill()
            raise


def _stop_workers(jobs: Future[Any], number: int) -> None:
    signalled: set[psutil.Process] = set()
    end = time.monotonic() + GRACE_SECONDS
    while not jobs.done() and time.monotonic() < end:
        for worker in _find_workers() - signalled:
            signalled.add(worker)
            # The worker may have ended since it was found.
            with suppress(psutil.NoSuchProcess):
                worker.send_signal(number)
        wait([jobs], POLL)


def _find_workers() -> set[psutil.Process]:
    found = set()
    for worker in active_children():
        with suppress(psutil.NoSuchProcess):
            # psutil compares processes by PID and start time, so a reused PID is a new worker.
            found.add(psutil.Process(worker.pid))
    return found


class WorkerTask:
    """A wrapper of Hydra's task function that handles stop signals in a worker process.

    A stop signal ends the current job of the worker and prevents later jobs. A stopped job raises
    RunError, because a KeyboardInterrupt would make joblib kill all workers.
    """

    def __init__(self, task: TaskFunction) -> None:
        self.task = task

    def __call__(self, config: Any) -> Any:
        for number in NUMBERS:
            # Ignored signals stay ignored, such as SIGINT in a background job of a shell.
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, lambda arrived, _: _received.append(arrived))
        # Signals that arrived during the imports are delivered now, to the handlers above.
        if hasattr(signal, "pthread_sigmask"):
            signal.pthread_sigmask(signal.SIG_UNBLOCK, NUMBERS)
        try:
            with StopSignals():
                if _received:
                    raise Stopped(_received[0])
                return self.task(config)
        except Stopped as stop:
            _received.append(stop.number)
            raise RunError from stop


def _block_signals() -> None:
    if hasattr(signal, "pthread_sigmask"):
        # Start the resource tracker now, because starting it later would unblock the signals.
        ensure_running()
        signal.pthread_sigmask(signal.SIG_BLOCK, NUMBERS)
