"""Show a progress bar with the time left, if standard error is a terminal."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TextIO

from rich import progress as bars

from kinopoisk_ft.console import open_terminal
from kinopoisk_ft.training.distributed.processes import is_main

# The number of the running job of a sweep, such as "3/5", which each bar shows before its name.
JOB = ContextVar("job", default="")


class Progress:
    """A progress bar with steps, time left and metrics.

    Args:
        done: number of steps done before the start of the bar, for example in a resumed run.
        steps: number of all steps; None if it is unknown.
    """

    def __init__(self, done: int, steps: int | None, name: str = "training") -> None:
        console = open_terminal(sys.stderr)
        self._bars = bars.Progress(
            # A bar of 10 columns leaves room for the loss and the score in 80 columns.
            bars.TextColumn("{task.description}"), bars.BarColumn(10), bars.MofNCompleteColumn(),
            bars.TextColumn("time left"), bars.TimeRemainingColumn(),
            bars.TextColumn("{task.fields[values]}"),
            console=console, disable=not (is_main() and console.is_terminal),
            # rich sends redirected text to standard error, which would be wrong for piped output.
            redirect_stdout=open_terminal(sys.stdout).is_terminal,
        )  # fmt: skip
        self._task = self._bars.add_task(
            f"{JOB.get()} {name}".lstrip(), total=steps, completed=done, values=""
        )
        self._values: dict[str, str] = {}
        self._streams: list[tuple[logging.StreamHandler[TextIO], TextIO]] = []

    def __enter__(self) -> Progress:
        # Subclasses such as FileHandler write to other streams.
        handlers = [h for h in logging.root.handlers if type(h) is logging.StreamHandler]
        before = sys.stdout, sys.stderr
        self._bars.start()
        # rich has replaced both streams. Text in the new streams appears above the bar.
        after = sys.stdout, sys.stderr
        for handler in handlers:
            for old, new in zip(before, after, strict=True):
                if handler.stream is old:
                    self._streams.append((handler, old))
                    handler.setStream(new)
        return self

    def __exit__(self, *error: object) -> None:
        for handler, stream in self._streams:
            handler.setStream(stream)
        self._bars.stop()

    def to(self, step: int, **values: str) -> None:
        """Move the bar to a step, and update the displayed values."""
        self._values.update(values)
        text = ", ".join(f"{name} {value}" for name, value in self._values.items())
        self._bars.update(self._task, completed=step, values=text)

    def advance(self, steps: int) -> None:
        """Move the bar by a number of steps."""
        self._bars.advance(self._task, steps)

    @contextmanager
    def show_part(
        self, name: str, steps: int, check: Callable[[], None]
    ) -> Iterator[Callable[[int], None]]:
        """Show a second bar during a `with` block.

        Args:
            check: called after each move of the second bar; can raise an exception.

        Yields:
            A function that moves the second bar by a number of steps.
        """
        task = self._bars.add_task(name, total=steps, values="")

        def advance(count: int) -> None:
            self._bars.advance(task, count)
            check()

        try:
            yield advance
        finally:
            self._bars.remove_task(task)
