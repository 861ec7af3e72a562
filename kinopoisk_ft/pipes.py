"""A reader that goes away, as `head` does, ends a command quietly."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec

P = ParamSpec("P")


def ends_quietly(main: Callable[P, int]) -> Callable[P, int]:
    """Return exit code 1 and no traceback where nobody reads standard output any more.

    As Python's documentation of `signal` has it: SIGPIPE's own end would also strike a connection
    that its server closes.
    """

    @wraps(main)
    def run(*args: P.args, **kwargs: P.kwargs) -> int:
        try:
            try:
                return main(*args, **kwargs)
            finally:
                sys.stdout.flush()  # what is left would fail at exit, where nothing can catch it
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is buffered
            return 1

    return run
