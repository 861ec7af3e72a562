"""Compare training steps on a quiet machine, next to a busy process, and of several jobs at once.

    python benchmarks/busy.py --json busy.json --markdown busy.md

OpenMP's threads wait for each other in a busy loop. If another process takes one of their cores,
the others wait for the thread that lost it. The settings decide how long they loop before sleeping.
"""

from __future__ import annotations

import argparse
import logging
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from common.report import Section, command_line, publish
from common.shapes import SMALL, TINY2
from common.timing import ratios, take_turns
from common.training_step import VOCABULARY, time_steps

BATCH, LENGTH = 16, 256
SHAPES = {"tiny2": TINY2, "e5": SMALL}
CORES = os.cpu_count() or 1
SETTINGS: dict[str, dict[str, str]] = {
    # 300,000 loops.
    "libgomp's default": {},
    **{f"GOMP_SPINCOUNT={n}": {"GOMP_SPINCOUNT": str(n)} for n in (30_000, 10_000, 1_000)},
    "OMP_WAIT_POLICY=PASSIVE": {"OMP_WAIT_POLICY": "PASSIVE"},
}
# The other process ends with this one, even if this one is killed.
OTHER = "import os, sys\nwhile os.getppid() == int(sys.argv[1]): sum(range(100_000))"


@contextmanager
def occupy_core(busy: bool) -> Iterator[None]:
    """Keep a core busy with another process, if asked to."""
    if not busy:
        yield
        return
    with subprocess.Popen([sys.executable, "-c", OTHER, str(os.getpid())]) as other:
        try:
            yield
        finally:
            other.kill()


def step_seconds(
    shape: str, steps: int, jobs: int = 1, threads: int = CORES, **settings: str
) -> float:
    """Start new processes that begin their steps together; return the median seconds of a step."""
    command = [sys.executable, __file__, "--child", shape, str(steps)]
    # Settings of the caller would apply to some of the compared ways only.
    own = {name: value for name, value in os.environ.items() if "OMP_" not in name}
    own |= {"OMP_NUM_THREADS": str(threads), **settings}
    pipe = subprocess.PIPE
    with ExitStack() as stack:
        children = [
            stack.enter_context(
                subprocess.Popen(command, env=own, text=True, stdin=pipe, stdout=pipe)
            )
            for _ in range(jobs)
        ]
        # A child prints a line when it is ready, and continues when it has read a line.
        for child in children:
            child.stdout.readline()
        for child in children:
            print(file=child.stdin, flush=True)
        return statistics.median(float(child.stdout.read()) for child in children)


def compare_settings(names: Sequence[str], rounds: int, steps: int) -> list[dict[str, Any]]:
    """Time all settings alternately, quiet and busy; return a row for each."""

    def turn(name: str, busy: bool) -> float:
        with occupy_core(busy):
            return step_seconds("e5", steps, **SETTINGS[name])

    ways = [(name, busy) for name in names for busy in (False, True)]
    found = take_turns({way: partial(turn, *way) for way in ways}, rounds)
    default = found[names[0], False]
    rows: list[dict[str, Any]] = []
    for name in names:
        quiet, busy = found[name, False], found[name, True]
        rows.append({"setting": name, "quiet s": statistics.median(quiet), "quiet min": min(quiet),
                     "quiet max": max(quiet), "busy s": statistics.median(busy),
                     "busy min": min(busy), "busy max": max(busy),
                     "busy / quiet": ratios(busy, quiet)["ratio"],
                     "quiet / default": ratios(quiet, default)["ratio"]})  # fmt: skip
    return rows


def compare_jobs(shapes: Sequence[str], rounds: int, steps: int) -> list[dict[str, Any]]:
    """Time one job with a thread per core, and one job per core with a thread each."""
    rows: list[dict[str, Any]] = []
    for shape in shapes:
        counts = {1: CORES, CORES: 1}
        turns = {n: partial(step_seconds, shape, steps, n, counts[n]) for n in counts}
        found = take_turns(turns, rounds)
        rows += [
            {"model": shape, "jobs": jobs, "threads of each": threads,
             "step s": statistics.median(found[jobs]), "min": min(found[jobs]),
             "max": max(found[jobs]),
             "throughput": jobs * ratios(found[1], found[jobs])["ratio"]}
            for jobs, threads in counts.items()
        ]  # fmt: skip
    return rows


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    if args.child:
        shape, steps = SHAPES[args.child[0]], int(args.child[1])
        print(time_steps(shape, [], BATCH, LENGTH, steps, lambda: input("ready\n")))
        return
    names, shapes = list(SETTINGS), list(SHAPES)
    rounds, steps = (1, 2) if args.quick else (2, 3)
    sections = [
        Section(
            "Quiet and busy",
            f"A BERT of transformers in the shape of e5-small (12 layers of width 384), but with "
            f"{VOCABULARY:,} tokens in the vocabulary, in fp32. A step trains all weights on a "
            f"batch of {BATCH} x {LENGTH} tokens, with the project's loop. Seconds: median, "
            f"minimum and maximum of {rounds} starts, of each start's median of {steps} steps "
            "after the warm-up. Busy: one other process computes without a pause. On two cores, a "
            "step takes at least 1.33 times as long if this process gets half of one core, and 1.5 "
            "times if all three threads get the same share. Ratios are medians over the starts.",
            compare_settings(names[:2] if args.quick else names, rounds, steps),
        ),
        Section(
            "Several jobs at once",
            "The same step in one job with a thread per core, and in one job per core with one "
            "thread each; these jobs begin their steps together. tiny2 has 3 layers of width 312. "
            "`throughput`: steps per second of all jobs together, relative to the one job.",
            compare_jobs(shapes[:1] if args.quick else shapes, rounds, steps),
        ),
    ]
    remark = "Freed memory stays in the process, as in training."
    publish("A machine that is shared", sections, args, remark)


if __name__ == "__main__":
    main()
