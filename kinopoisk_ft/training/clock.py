"""Measure the time that each section of a run takes, without counting nested sections twice."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class Clock:
    """Measure the wall-clock time of named sections.

    Time counts for the innermost open section only. For example, the time of an evaluation during
    training is part of the section "val", but not of the section "train".

    Args:
        sync: waits for the device, so that work counts for the section that queued it.
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
        """Add the duration of the block, except for nested sections, to the section `name`."""
        self._charge()
        self._open.append(name)
        try:
            yield
        finally:
            self._charge()
            self._open.pop()

    def get_seconds(self, name: str) -> float:
        """Return the seconds of a section so far, also while it is the innermost open section."""
        # Do not wait for the device: this is called at every step, and the device would run idle.
        running = self._open[-1:] == [name]
        return self.seconds.get(name, 0.0) + (self.now() - self._since if running else 0.0)

    def state_dict(self) -> dict[str, Any]:
        """Return the seconds of each section."""
        return {"seconds": dict(self.seconds)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Set the seconds of each section that `state` contains."""
        self.seconds.update(state["seconds"])

    def _charge(self) -> None:
        self.sync()
        now = self.now()
        if self._open:
            self.seconds[self._open[-1]] += now - self._since
        self._since = now
