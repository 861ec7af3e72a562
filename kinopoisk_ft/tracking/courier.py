"""A thread that brings events to a store while training goes on."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

log = logging.getLogger(__name__)

PAUSE, LONGEST_PAUSE = 1.0, 60.0  # seconds after a failure: the first, doubled up to the last
GATHER = 10.0  # seconds in which metrics come together: a write of many costs little more than one
LAST_FAILURES = 3  # in a row, once the run is at its end


class Courier:
    """Calls `step` until nothing is left, waits to be woken, and rests longer after each failure.

    No error leaves the thread: `trouble` has the last one, None while all is well. The first of an
    outage is a warning, but that of the very first step is left to who started it.

    Args:
        step: delivers something; False when there is nothing to deliver.
    """

    def __init__(self, step: Callable[[], bool]) -> None:
        self.trouble: Exception | None = None
        self._step = step
        self._tried, self._woken = threading.Event(), threading.Event()
        self._closing, self._stopped = threading.Event(), threading.Event()
        # A daemon: a server that hangs must not keep the process from its end.
        self._thread = threading.Thread(target=self._run, name="tracking", daemon=True)

    def start(self, seconds: float) -> bool:
        """Begin; returns whether the first step came to an end, well or not, within the time."""
        self._thread.start()
        return self._tried.wait(seconds)

    def wake(self) -> None:
        """Say that there is something to deliver."""
        self._woken.set()

    def close(self, seconds: float) -> bool:
        """Deliver what is left for so long; returns whether all was."""
        self._closing.set()
        self._woken.set()
        self._thread.join(seconds)
        delivered = not self._thread.is_alive() and self.trouble is None
        self.stop()
        return delivered

    def stop(self) -> None:
        """Deliver nothing more, once the step that is going on has come to its end."""
        self._stopped.set()
        self._closing.set()
        self._woken.set()

    def _run(self) -> None:
        failures, closing = 0, False
        while not self._stopped.is_set():
            self._woken.clear()
            if self._closing.is_set() and not closing:
                failures, closing = 0, True  # an outage until now says nothing of the last tries
            try:
                busy = self._step()
            except Exception as error:
                failures += 1
                self._fail(error, closing, failures)
                if closing and failures >= LAST_FAILURES:
                    return
            else:
                if self.trouble is not None:
                    log.info("the MLflow store takes metrics again")
                failures, self.trouble = 0, None
                self._tried.set()
                if not busy and closing:
                    return
                if not busy:
                    self._woken.wait()
                    self._closing.wait(GATHER)

    def _fail(self, error: Exception, closing: bool, failures: int) -> None:
        if self.trouble is None and self._tried.is_set():
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            log.warning("the MLflow store takes nothing now, training goes on: %s", reason[:300])
        self.trouble = error
        self._tried.set()
        if closing:
            self._stopped.wait(PAUSE)
        else:
            self._closing.wait(min(LONGEST_PAUSE, PAUSE * 2 ** min(failures - 1, 10)))
