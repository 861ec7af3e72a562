"""Show a progress bar if stderr is a terminal."""

from __future__ import annotations

import logging
import sys
from types import TracebackType

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from kinopoisk_ft.training.distributed.processes import is_main


class Progress:
    """A progress bar with steps, speed and metrics."""

    def __init__(self, done: int, steps: int | None) -> None:
        self._bar = tqdm(
            initial=done, total=steps, unit="step", dynamic_ncols=True,
            disable=not (is_main() and sys.stderr.isatty()),
        )  # fmt: skip
        self._values: dict[str, str] = {}
        # Log lines appear above the bar instead of breaking it.
        self._redirect = logging_redirect_tqdm()

    def __enter__(self) -> Progress:
        console = [h for h in logging.root.handlers if type(h) is logging.StreamHandler]
        self._redirect.__enter__()
        if console:
            # tqdm has replaced this handler by another one, which is the last and has no level.
            logging.root.handlers[-1].setLevel(console[0].level)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._redirect.__exit__(kind, error, trace)
        self._bar.close()

    def to(self, step: int, **values: str) -> None:
        """Move the bar to a step, and update the displayed values."""
        self._values.update(values)
        self._bar.set_postfix(self._values, refresh=False)
        self._bar.update(step - self._bar.n)
