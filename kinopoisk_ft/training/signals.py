"""Stop a run when a signal arrives."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

from kinopoisk_ft.training.distributed import torchrun

# Exit codes as in a shell, 128 plus the number of the signal. Slurm sends SIGUSR1 and submitit
# SIGUSR2 before they end or requeue a job, so both get the exit code of SIGTERM.
EXIT_CODES = {"SIGINT": 130, "SIGTERM": 143, "SIGUSR1": 143, "SIGUSR2": 143}
# Windows does not have SIGUSR1 and SIGUSR2.
NUMBERS = [getattr(signal, name) for name in EXIT_CODES if hasattr(signal, name)]
# Seconds after a signal in which a job can finish a step, write a checkpoint and close the tracker.
GRACE_SECONDS = 60
# Maximum seconds between a signal and its copy that the parent process forwards.
ECHO_SECONDS = 2.0


# `except Exception` does not catch KeyboardInterrupt, which is not a subclass of Exception.
class Stopped(KeyboardInterrupt):
    """Raised when a signal stops the run.

    Args:
        mid_step: whether the signal interrupted a step, so that the state is not consistent.
    """

    def __init__(self, number: int, mid_step: bool = False) -> None:
        name = signal.Signals(number).name
        super().__init__(f"stopped by {name}")
        self.number, self.exit_code, self.mid_step = number, EXIT_CODES[name], mid_step

    def __reduce__(self) -> tuple[type[Stopped], tuple[int, bool]]:
        # A worker process sends the exception to its parent process, which requires pickling.
        return Stopped, (self.number, self.mid_step)


class StopSignals:
    """A context manager that raises `Stopped` when a signal arrives.

    A `defer` block delays the exception until the end of the block. A second signal ends the delay.
    Python handles signals only in the main thread, so in other threads, this context does nothing.

    A child process may receive a signal twice, because its parent process forwards signals. For a
    short time (ECHO_SECONDS) after a signal, the child therefore ignores the same signal.

    Args:
        agree: takes the number of the pending signal in this process (0 if there is none), and
            returns the maximum over all processes of the run. Therefore, a signal to one process
            stops all processes at the same call of `check`.
    """

    # Times of the last signals, shared because a forwarded signal may arrive in an outer context.
    _last_counted: ClassVar[dict[int, float]] = {}

    def __init__(self, agree: Callable[[int], int] | None = None) -> None:
        self._deferring, self._pending, self._agree = False, 0, agree
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for number in NUMBERS:
                # Ignored signals stay ignored. Shell scripts ignore SIGINT in background jobs.
                if signal.getsignal(number) != signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextmanager
    def defer(self) -> Iterator[None]:
        """Delay `Stopped` until the end of the `with` block if a signal arrives within it."""
        self._deferring = True
        try:
            yield
        finally:
            self._deferring = False
        # Not in `finally`, where Stopped would replace an exception of the block.
        self.check()

    def check(self) -> None:
        """Raise `Stopped` if a signal is pending in any process of the run."""
        if self._agree is not None:
            self._pending = self._agree(self._pending)
        if self._pending:
            raise Stopped(self._pending)

    def _handle(self, number: int, frame: object) -> None:
        now, before = time.monotonic(), self._last_counted.get(number)
        if torchrun.is_child_process() and before is not None and now - before < ECHO_SECONDS:
            return
        self._last_counted[number] = now
        # With `agree`, wait for the next `check`: a rank that stops alone would block the others.
        waits = self._deferring or self._agree is not None
        if waits and not self._pending:
            self._pending = number
        else:
            # Either no step is in progress, or a second signal ends the step at once.
            raise Stopped(number, mid_step=waits)
