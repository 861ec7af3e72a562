"""Fork the child processes of tests from pytest's process, which has imported everything."""

from __future__ import annotations

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
    """Run the server's code in a fork that keeps only the open files `passed`.

    The numbers of the other open files stay in use, for the null device. Objects of pytest's
    process still write to these numbers, for example handlers of logging; the server's own pipes
    must not get them.
    """
    child = os.fork()
    if child:
        return child
    try:
        null = os.open(os.devnull, os.O_RDWR)
        for name in os.listdir("/dev/fd"):
            number = int(name)
            if number > 2 and number not in passed and os.path.exists(f"/dev/fd/{name}"):
                os.dup2(null, number)
        # pytest's own write to files that are closed now.
        sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))
        exec(arguments[-1], {})
    finally:
        os._exit(0)
