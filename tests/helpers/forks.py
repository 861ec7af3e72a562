"""Fork the child processes of tests from pytest's process, which has imported everything."""

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
    """Start multiprocessing's fork server before the first test starts threads or changes state.

    Normally, the server is a new interpreter, which needs seconds to import the same modules again.
    Here, it is a fork of pytest's process.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(util, "spawnv_passfds", _fork)
        forkserver.ensure_running()


def _fork(_: str, arguments: Sequence[str], passed: Sequence[int]) -> int:
    """Run the server's code in a fork that keeps only the open files `passed`."""
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
