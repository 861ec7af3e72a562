"""The server that new processes of tests are forks of: a fork of pytest's own process."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import sys
from collections.abc import Sequence
from multiprocessing import forkserver, util

import pytest

CHILDREN = multiprocessing.get_context("forkserver")


def start_server() -> None:
    """Start the server before the first test, when no thread has started and no state changed.

    multiprocessing would start a new interpreter, which imports for seconds what this one has.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(util, "spawnv_passfds", _fork)
        forkserver.ensure_running()


def _fork(_: str, arguments: Sequence[str], passed: Sequence[int]) -> int:
    """Run the code of a command for the interpreter in a fork that has only these open files."""
    child = os.fork()
    if child:
        return child
    try:
        borders = [2, *sorted(passed), os.sysconf("SC_OPEN_MAX")]
        for before, after in itertools.pairwise(borders):
            os.closerange(before + 1, after)
        # pytest's own write to files that are closed now.
        sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))
        exec(arguments[-1], {})
    finally:
        os._exit(0)
