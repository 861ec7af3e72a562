"""Time several jobs alternately, so that other load on the machine affects all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TypeVar

Job = Callable[[], object]
K = TypeVar("K")
T = TypeVar("T")


def alternate(ways: Mapping[str, Job], rounds: int, turn: float = 0.2) -> dict[str, list[float]]:
    """Return the seconds of a call of each job, one figure per round.

    Each job is first called once without a figure, so that kernels are compiled and loaded.
    """
    for job in ways.values():
        job()
    return take_turns({name: partial(take_turn, job, turn) for name, job in ways.items()}, rounds)


def take_turns(turns: Mapping[K, Callable[[], T]], rounds: int) -> dict[K, list[T]]:
    """Call the turns, every second round in reverse order; return what they returned, per round."""
    found: dict[K, list[T]] = {name: [] for name in turns}
    for number in range(rounds):
        for name in list(turns)[:: -1 if number % 2 else 1]:
            found[name].append(turns[name]())
    return found


def take_turn(job: Job, turn: float) -> float:
    """Call a job for `turn` seconds, but at least once; return the median seconds of a call."""
    calls: list[float] = []
    while not calls or sum(calls) < turn:
        start = time.perf_counter()
        job()
        calls.append(time.perf_counter() - start)
    return statistics.median(calls)


def ratios(other: Sequence[float], own: Sequence[float]) -> dict[str, float]:
    """Return how many times longer `other` took: median, minimum and maximum over rounds."""
    found = [theirs / ours for theirs, ours in zip(other, own, strict=True)]
    return {"ratio": statistics.median(found), "min": min(found), "max": max(found)}
