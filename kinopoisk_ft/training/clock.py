"""Measure the seconds of each part of a run, without counting any of them twice."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class Clock:
    """Add wall time to the innermost open section.

    The time of an evaluation during training belongs to the evaluation only.

    Args:
        sync: waits for the device, so that its queued work belongs to the section that queued it.
        now: returns the current time in seconds.
    """

    def __init__(
        self, sync: Callable[[], None] = lambda: None, now: Callable[[], float] = time.perf_counter
    ) -> None:
        self.sync, self.now = sync, now
        self.seconds: dict[str, float] = defaultdict(float)
        self._open: list[str] = []
        self._since = now()

    @contextmanager
    def section(self, name: str) -> Iterator[None]:
        """Add the time of the block to section `name`, without the time of inner sections."""
        self._charge()
        self._open.append(name)
        try:
            yield
        finally:
            self._charge()
            self._open.pop()

    def get_seconds(self, name: str) -> float:
        """Return the seconds of a section; the innermost open one is measured up to now.

        Do not wait for the device: waiting at every step would leave it without queued work.
        """
        running = self._open[-1:] == [name]
        return self.seconds.get(name, 0.0) + (self.now() - self._since if running else 0.0)

    def state_dict(self) -> dict[str, Any]:
        """Return the seconds by section."""
        return {"seconds": dict(self.seconds)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Replace the seconds of the sections that `state_dict` returned."""
        self.seconds.update(state["seconds"])

    def _charge(self) -> None:
        self.sync()
        now = self.now()
        if self._open:
            self.seconds[self._open[-1]] += now - self._since
        self._since = now
