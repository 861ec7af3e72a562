"""Signals that ask a run to stop: between two steps, and at once when asked again."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, ClassVar

from kinopoisk_ft.training.distributed import torchrun

# What a shell reports of a process that the signal ended; Slurm warns with SIGUSR1, submitit with
# SIGUSR2, before a job is ended or requeued, and they mean SIGTERM.
EXIT_CODES = {"SIGINT": 130, "SIGTERM": 143, "SIGUSR1": 143, "SIGUSR2": 143}
NUMBERS = [getattr(signal, name) for name in EXIT_CODES if hasattr(signal, name)]  # Windows has two
GRACE = 60  # seconds for jobs that are told to stop: a step, a checkpoint, the tracker's end
# Seconds in which a signal to all processes also comes by the one that started this one.
ECHO = 2.0


class Stopped(KeyboardInterrupt):
    """A signal has stopped the run.

    Args:
        torn: raised inside a step, whose state is then neither the old nor the new one.
    """

    def __init__(self, number: int, torn: bool = False) -> None:
        name = signal.Signals(number).name
        super().__init__(f"stopped by {name}")
        self.number, self.exit_code, self.torn = number, EXIT_CODES[name], torn

    def __reduce__(self) -> tuple[type[Stopped], tuple[int, bool]]:
        """Pickle by what it is made of: a worker process hands it to the one that started it."""
        return Stopped, (self.number, self.torn)


class StopSignals:
    """While entered, the signals raise Stopped; inside `defer`, at its end or the second time.

    Only the main thread can be told of signals: in another this does nothing. A signal that the
    process ignores stays ignored. Can be nested: the inner one counts.

    A process that another one of this program started gets a signal to all of them twice, from its
    sender and passed on: there the same one within ECHO seconds counts once.

    Args:
        agree: of the processes of one run, returns the largest of what each gives: a signal to one
            then stops all at the same place, the end of `defer` or a `check`.
    """

    # When each signal last counted: an echo may come when the inner ones have been left.
    _counted: ClassVar[dict[int, float]] = {}

    def __init__(self, agree: Callable[[int], int] | None = None) -> None:
        self._held, self._arrived, self._agree = False, 0, agree
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for number in NUMBERS:
                if signal.getsignal(number) != signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._arrive)
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
        """Finish what is inside before a signal that arrives there stops the run."""
        self._held = True
        try:
            yield
        finally:
            self._held = False
        self.check()

    def check(self) -> None:
        """Stop the run if a signal waits, in this process or in one that it agrees with."""
        if self._agree is not None:
            self._arrived = self._agree(self._arrived)
        if self._arrived:
            raise Stopped(self._arrived)

    def _arrive(self, number: int, frame: object) -> None:
        now, before = time.monotonic(), self._counted.get(number)
        if torchrun.is_child_process() and before is not None and now - before < ECHO:
            return
        self._counted[number] = now
        waits = self._held or self._agree is not None
        if waits and not self._arrived:
            self._arrived = number
        else:
            raise Stopped(number, torn=waits)
