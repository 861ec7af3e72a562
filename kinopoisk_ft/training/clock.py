"""Seconds by what they were spent on: one section at a time, nothing counted twice."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class Clock:
    """Charges wall time to the innermost open section.

    An evaluation inside training is charged to the evaluation alone. `sync` waits for the device,
    so that work queued in one section is not paid for by the next. `now` tells the seconds.
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
        """Charge the time inside to `name`, less that of sections opened within."""
        self._charge()
        self._open.append(name)
        try:
            yield
        finally:
            self._charge()
            self._open.pop()

    def spent(self, name: str) -> float:
        """Return the seconds of a section, those of the innermost open one up to now.

        It does not wait for the device, whose queue would else run dry at every step.
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
