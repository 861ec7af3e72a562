"""Run the jobs of a sweep in a pool of processes; a signal to the command stops them all, saved."""

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
# Seconds between two searches for workers that have not received the signal yet.
POLL = 0.1

# Signals that reached this process, a worker of the pool.
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
    """Run the jobs with Hydra's own joblib launcher and return how they ended, in their order.

    Args:
        context: hydra_context, task_function and config.
        options: those of Hydra's launcher.
        first: number of the first job.

    Raises:
        Stopped: a signal came.
    """
    from hydra_plugins.hydra_joblib_launcher.joblib_launcher import JoblibLauncher

    launcher = JoblibLauncher(**options)
    if count_parallel_jobs(options) == 1:
        # The jobs run in this process and receive signals themselves.
        launcher.setup(**context)
        return list(launcher.launch(job_overrides, first))
    launcher.setup(**{**context, "task_function": WorkerTask(context["task_function"])})
    return list(run_stoppable(lambda: launcher.launch(job_overrides, first)))


def run_stoppable(launch: Callable[[], T]) -> T:
    """Return the result of `launch`, which starts and awaits jobs; pass signals on to the workers.

    `launch` runs in a thread that blocks signals. Workers inherit that, so a signal cannot end one
    that is still importing. Nothing is raised inside joblib, which would kill its workers.

    Raises:
        Stopped: a signal came, and no worker is left.
    """
    with ThreadPoolExecutor(1, initializer=_block_signals) as thread, StopSignals():
        jobs = thread.submit(launch)
        try:
            return jobs.result()
        except Stopped as stop:
            try:
                _stop_workers(jobs, stop.number)
            finally:
                # A second signal ends the wait, too.
                for worker in _find_workers():
                    with suppress(psutil.NoSuchProcess):
                        worker.kill()
            raise


def _stop_workers(jobs: Future[Any], number: int) -> None:
    """Send the signal to all workers, including new ones, and wait until the jobs end."""
    signalled: set[psutil.Process] = set()
    end = time.monotonic() + GRACE_SECONDS
    while not jobs.done() and time.monotonic() < end:
        for worker in _find_workers() - signalled:
            signalled.add(worker)
            with suppress(psutil.NoSuchProcess):
                worker.send_signal(number)
        wait([jobs], POLL)


def _find_workers() -> set[psutil.Process]:
    found = set()
    for worker in active_children():
        with suppress(psutil.NoSuchProcess):
            found.add(psutil.Process(worker.pid))
    return found


class WorkerTask:
    """A task for a worker of the pool: a signal ends its job, and no other job begins there.

    A stopped job raises RunError, which Hydra returns as a failure: joblib would kill all workers
    for a KeyboardInterrupt.
    """

    def __init__(self, task: TaskFunction) -> None:
        self.task = task

    def __call__(self, config: Any) -> Any:
        """Run the job."""
        for number in NUMBERS:
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, lambda arrived, _: _received.append(arrived))
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
    """Block signals in this thread and in the processes that it starts; not on Windows."""
    if hasattr(signal, "pthread_sigmask"):
        # If this helper process of multiprocessing started later, it would unblock the signals.
        ensure_running()
        signal.pthread_sigmask(signal.SIG_BLOCK, NUMBERS)
