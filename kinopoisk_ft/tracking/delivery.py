"""Send recorded events to MLflow in a background thread during training."""

from __future__ import annotations

import logging
import threading

from kinopoisk_ft.errors import UserError, first_line
from kinopoisk_ft.tracking.replay import Replay
from kinopoisk_ft.tracking.store_schema import UnreachableError

log = logging.getLogger(__name__)

# Seconds between two deliveries. A request with many metrics takes little longer than a small one.
INTERVAL = 10.0
# Seconds to wait after a failure. The pause doubles with each consecutive failure.
PAUSE, MAX_PAUSE = 1.0, 60.0
# Number of consecutive failures at the end of a run before unsent events are left to `sync`.
LAST_TRIES = 3


class Delivery:
    """A background thread that sends new events to the store every few seconds.

    While the store does not answer, the thread tries less often. Errors are not raised, but stored
    in `error`. The first error of each outage is also logged. The error of the very first request
    is not logged, because the caller of `start` reports this error.

    Attributes:
        error: the last error, or None while the store answers.
    """

    def __init__(self, replay: Replay) -> None:
        self.error: Exception | None = None
        self._replay = replay
        self._failures = 0
        # `_closing` lets the thread send the rest, and `_stopped` ends it without more requests.
        self._tried, self._closing, self._stopped = (threading.Event() for _ in range(3))
        # A daemon thread, because a server that hangs must not keep the process alive.
        self._thread = threading.Thread(target=self._run, name="tracking", daemon=True)

    def start(self, seconds: float) -> bool:
        """Start the thread, and wait until its first request has ended.

        Returns:
            Whether the request ended within `seconds`, successfully or not.
        """
        self._thread.start()
        return self._tried.wait(seconds)

    def close(self, seconds: float) -> bool:
        """Send unsent events for at most `seconds`, and return whether all were sent."""
        self._closing.set()
        self._thread.join(seconds)
        is_complete = not self._thread.is_alive() and self.error is None
        # The caller closes the log next, and another process may then send the remaining events.
        self.stop()
        return is_complete

    def stop(self) -> None:
        """Stop the thread after its current request."""
        self._stopped.set()
        self._closing.set()

    def send_rest(self) -> None:
        """Send all unsent events, with a few retries if the store does not answer."""
        # Failures before this call do not count towards LAST_TRIES.
        self._failures = 0
        while not self._send_all() and self._failures < LAST_TRIES and not self.needs_user():
            # Unlike `time.sleep`, this wait ends as soon as `stop` is called.
            self._stopped.wait(PAUSE)

    def needs_user(self) -> bool:
        """Return whether the user must correct the error, because a retry would fail."""
        return isinstance(self.error, UserError) and not isinstance(self.error, UnreachableError)

    def _run(self) -> None:
        while not self._closing.is_set():
            is_complete = self._send_all()
            # Without the limit of 10, a float could not hold the power after a thousand failures.
            pause = min(MAX_PAUSE, PAUSE * 2 ** min(self._failures - 1, 10))
            self._closing.wait(INTERVAL if is_complete else pause)
        self.send_rest()

    def _send_all(self) -> bool:
        has_more = True
        while has_more and not self._stopped.is_set():
            try:
                has_more = self._replay.step()
            except Exception as error:
                self._fail(error)
                return False
            if self.error is not None:
                log.info("the MLflow store answers again")
            self.error, self._failures = None, 0
            self._tried.set()
        return True

    def _fail(self, error: Exception) -> None:
        self._failures += 1
        if self.error is None and self._tried.is_set():
            text = "training continues, but the MLflow store does not answer: %s"
            log.warning(text, first_line(error)[:300])
        self.error = error
        self._tried.set()
