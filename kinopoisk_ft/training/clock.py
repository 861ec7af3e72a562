"""Measure how long each section of a run takes."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class Clock:
    """A clock that measures named sections of a run.

    Time counts for the innermost open section only. For example, the time of an evaluation during
    training counts for "val" and not for "train".

    Args:
        sync: waits until the device has finished its queued work.
        now: returns the current time in seconds.
    """

    def __init__(
        self, sync: Callable[[], None] = lambda: None, now: Callable[[], float] = time.perf_counter
    ) -> None:
        self.sync, self.now = sync, now
        self.seconds: dict[str, float] = defaultdict(float)
        # Names of the open sections, the innermost one last.
        self._open: list[str] = []
        self._since = now()

    @contextmanager
    def section(self, name: str) -> Iterator[None]:
        """Measure a `with` block as a section."""
        self._charge()
        self._open.append(name)
        try:
            yield
        finally:
            self._charge()
            self._open.pop()

    def get_seconds(self, name: str) -> float:
        """Return the seconds that a section has taken so far."""
        # Do not wait for the device: this is called at every step, and the device would run idle.
        running = self._open[-1:] == [name]
        return self.seconds.get(name, 0.0) + (self.now() - self._since if running else 0.0)

    def state_dict(self) -> dict[str, Any]:
        """Return the seconds of each section."""
        return {"seconds": dict(self.seconds)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the seconds of the sections in `state`."""
        # Values are replaced and not added, so that work which a resumed run has to repeat, such as
        # building the model, is not counted twice.
        self.seconds.update(state["seconds"])

    def _charge(self) -> None:
        # Otherwise, work that a GPU has queued would count for the next section.
        self.sync()
        now = self.now()
        if self._open:
            self.seconds[self._open[-1]] += now - self._since
        self._since = now
