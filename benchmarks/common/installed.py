"""Other packages as their users have them beside the project as it trains: two processes in turn.

The project's training keeps freed memory in the process; by glibc's defaults it goes back to the
kernel, and large tensors are faulted in afresh at each step. The setting holds for a process.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from typing import Any

from common.scans import OURS
from common.timing import Job, ratios, take_turn, take_turns

KEPT = ", memory kept"


def compare(
    make: Callable[..., Job], names: Sequence[str], size: int, rounds: int, turn: float
) -> list[dict[str, Any]]:
    """Time the ways of one size; returns a row for each, by how much longer than `OURS` it took.

    Ways that are not ours run in a second process as installed, and in this one beside ours.

    Args:
        make: a function of a module, of a name and a size, which keeps what it made; the job has
            been called before.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as installed:
        turns = {name + KEPT: partial(_turn, make, name, size, turn) for name in names}
        for name in names:
            if not name.startswith(OURS):
                ask = partial(installed.submit, _turn, make, name, size, turn)
                turns[name] = partial(_wait, ask)
        seconds = take_turns(turns, rounds)
    return [_row(seconds, name) for name in names]


def _turn(make: Callable[..., Job], name: str, size: int, turn: float) -> float:
    return take_turn(make(name, size), turn)


def _wait(ask: Callable[[], Any]) -> float:
    found: float = ask().result()
    return found


def _row(seconds: dict[str, list[float]], name: str) -> dict[str, Any]:
    own, kept = seconds[OURS + KEPT], seconds[name + KEPT]
    took = seconds.get(name, kept)
    return {
        "way": name, "ms": 1e3 * statistics.median(took), **ratios(took, own),
        "ms, memory kept": 1e3 * statistics.median(kept),
        "ratio, memory kept": ratios(kept, own)["ratio"],
    }  # fmt: skip


NOTE = (
    "`ratio`: how many times longer than ours, median, least and most of the rounds. Other ways "
    "run as installed, in a process of their own; `memory kept`: beside ours, with the setting of "
    "the allocator that the project's training makes."
)
