"""Time several ways of one job in turn, so that what slows the machine meets all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence

Job = Callable[[], object]


def alternate(ways: Mapping[str, Job], rounds: int, turn: float = 0.2) -> dict[str, list[float]]:
    """Return the seconds of a call of each way, one figure a round.

    In a round each way has one turn, in a later round in the opposite order. A turn lasts `turn`
    seconds, but at least a call, and gives the median of its calls. Nothing is called beforehand:
    what has to be compiled or loaded should be.
    """
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds):
        for name in list(ways)[:: -1 if number % 2 else 1]:
            seconds[name].append(_take_turn(ways[name], turn))
    return seconds


def _take_turn(job: Job, turn: float) -> float:
    calls: list[float] = []
    while not calls or sum(calls) < turn:
        start = time.perf_counter()
        job()
        calls.append(time.perf_counter() - start)
    return statistics.median(calls)


def ratios(other: Sequence[float], own: Sequence[float]) -> dict[str, float]:
    """Return how many times longer `other` took: the median over rounds, the least, the most."""
    found = [theirs / ours for theirs, ours in zip(other, own, strict=True)]
    return {"ratio": statistics.median(found), "least": min(found), "most": max(found)}
