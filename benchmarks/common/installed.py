"""Compare other packages, with default settings of the allocator, with the project's training.

The project's training keeps freed memory in the process. By glibc's defaults, freed memory returns
to the kernel, and memory of large tensors is mapped at each step. The setting applies to a process,
so other packages also run in a second process without it, alternating with this one.
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
    """Time implementations at one size; return a row for each, with its ratios to `OURS`.

    Other implementations run in this process, and in a second one with the default allocator.

    Args:
        make: a cached function of a module, which takes a name and a size. It returns a job that
            has already run once.
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
    "`ratio`: time divided by ours; median, minimum and maximum of the rounds. For `ms` and "
    "`ratio`, other implementations run in a separate process with the default allocator; for "
    "`memory kept`, they run in our process, which keeps freed memory as in the project's training."
)
