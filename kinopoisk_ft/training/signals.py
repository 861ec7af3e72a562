"""Stop a run on a signal between two steps; a second signal stops it immediately."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, ClassVar

from kinopoisk_ft.training.distributed import torchrun

# Exit codes by which a shell reports that a signal ended a process. Slurm sends SIGUSR1 and
# submitit SIGUSR2 before they end or requeue a job, so both count as SIGTERM.
EXIT_CODES = {"SIGINT": 130, "SIGTERM": 143, "SIGUSR1": 143, "SIGUSR2": 143}
# Windows has only the first two.
NUMBERS = [getattr(signal, name) for name in EXIT_CODES if hasattr(signal, name)]
# Time for jobs that must stop: to finish a step, write a checkpoint and close the tracker.
GRACE_SECONDS = 60
# A signal to all processes also arrives from the parent process, within this time.
ECHO_SECONDS = 2.0


class Stopped(KeyboardInterrupt):
    """Report that a signal stopped the run.

    Args:
        mid_step: the signal interrupted a step, so the training state is not consistent.
    """

    def __init__(self, number: int, mid_step: bool = False) -> None:
        name = signal.Signals(number).name
        super().__init__(f"stopped by {name}")
        self.number, self.exit_code, self.mid_step = number, EXIT_CODES[name], mid_step

    def __reduce__(self) -> tuple[type[Stopped], tuple[int, bool]]:
        """Pickle the constructor arguments, because a worker sends the exception to its parent."""
        return Stopped, (self.number, self.mid_step)


class StopSignals:
    """Raise Stopped when a signal arrives within the context.

    Within `defer` the exception is raised at the end of the block, or at once by a second signal.
    Python handles signals in the main thread, so in another thread this context does nothing. A
    signal that the process ignores stays ignored. In nested contexts the inner one handles signals.

    A child process receives a signal to all processes twice: directly, and forwarded by its parent.
    There the same signal counts once within ECHO_SECONDS.

    Args:
        agree: returns the maximum of its argument over all processes of the run. A signal to one
            process then stops all of them at the same point: the end of `defer`, or a `check`.
    """

    # Times of the last counted signals, shared by all contexts: a forwarded signal may arrive after
    # an inner context has ended.
    _last_counted: ClassVar[dict[int, float]] = {}

    def __init__(self, agree: Callable[[int], int] | None = None) -> None:
        self._deferring, self._pending, self._agree = False, 0, agree
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for number in NUMBERS:
                if signal.getsignal(number) != signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextmanager
    def defer(self) -> Iterator[None]:
        """Finish the block before a signal that arrives within it stops the run."""
        self._deferring = True
        try:
            yield
        finally:
            self._deferring = False
        self.check()

    def check(self) -> None:
        """Stop the run if a signal is pending in any of its processes."""
        if self._agree is not None:
            self._pending = self._agree(self._pending)
        if self._pending:
            raise Stopped(self._pending)

    def _handle(self, number: int, frame: object) -> None:
        now, before = time.monotonic(), self._last_counted.get(number)
        if torchrun.is_child_process() and before is not None and now - before < ECHO_SECONDS:
            return
        self._last_counted[number] = now
        waits = self._deferring or self._agree is not None
        if waits and not self._pending:
            self._pending = number
        else:
            raise Stopped(number, mid_step=waits)
