"""Let a process die, as by SIGKILL, before the n-th of certain calls."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable
from typing import Any

from sqlalchemy import Engine, event

KILLED = 9
# Calls that rename or delete files: the state on disk differs before and after each of them.
NAMES = ("replace", "link", "unlink", "rename")


def arm(moment: int, statements: bool = False) -> None:
    """Let this process die before one of these calls.

    Args:
        moment: how many calls succeed first; with `statements`, SQL statements count, too.
    """
    left = moment

    def die(*_: Any) -> None:
        nonlocal left
        if not left:
            os._exit(KILLED)
        left -= 1

    def counted(call: Callable[..., Any]) -> Callable[..., Any]:
        def counting(*args: Any, **options: Any) -> Any:
            die()
            return call(*args, **options)

        return counting

    for name in NAMES:
        setattr(os, name, counted(getattr(os, name)))
    if statements:
        event.listen(Engine, "before_cursor_execute", die)


def dies(work: Callable[[], object], moment: int, statements: bool = False) -> bool:
    """Do the work in a forked process that dies at the moment; return False if it ended before."""
    child = os.fork()
    if child:
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert status in (0, KILLED), status
        return status == KILLED
    try:
        arm(moment, statements)
        work()
        os._exit(0)
    except BaseException:
        traceback.print_exc()
    os._exit(1)
