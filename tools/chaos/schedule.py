"""Plan the experiments, so that each fault meets each phase."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from faults import Fault
from inject import WITH_CHECKPOINT


@dataclass(frozen=True)
class Plan:
    """What one experiment does: a fault before an event of a phase.

    Args:
        moment: the share of the events of the phase before the fault.
        seed: of everything else that is drawn, such as the bit that flips.
    """

    number: int
    kind: str
    fault: Fault
    phase: str
    moment: float
    seed: int


def schedule(
    counts: dict[str, dict[str, int]], chosen: list[Fault], rng: random.Random
) -> Iterator[Plan]:
    """Yield each possible pair of a phase and a fault once, then all again in another order.

    Args:
        counts: {kind: {phase: number of events}} of the undisturbed runs.
    """
    phases = sorted({phase for phases in counts.values() for phase in phases})
    pairs = [(phase, fault) for phase in phases for fault in chosen
             if phase.endswith(WITH_CHECKPOINT) == fault.needs_checkpoint]  # fmt: skip
    used: Counter[str] = Counter()
    for number in itertools.count() if pairs else ():
        if number % len(pairs) == 0:
            rng.shuffle(pairs)
        phase, fault = pairs[number % len(pairs)]
        kinds = [kind for kind in counts if phase in counts[kind]]
        # Each kind of run gets about as many faults.
        kind = min(kinds, key=lambda kind: (used[kind], rng.random()))
        used[kind] += 1
        yield Plan(number, kind, fault, phase, rng.random(), rng.randrange(2**32))
