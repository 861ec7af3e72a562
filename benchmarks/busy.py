"""Compare training steps on a quiet machine, next to a busy process, and of two jobs at once.

    python benchmarks/busy.py --json busy.json --markdown busy.md

OpenMP's threads wait for each other in a busy loop. If another process takes one of their cores,
the others wait for the thread that lost it. The settings decide how long they loop before sleeping.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch
from common.children import child_figures
from common.report import Section, command_line, publish
from common.shapes import SMALL, TINY2
from common.training_step import time_steps

BATCH, LENGTH = 16, 256
SHAPES = {"tiny2": TINY2, "e5": SMALL}
SETTINGS = {
    "libgomp's default": {"GOMP_SPINCOUNT": "300000"},
    **{f"GOMP_SPINCOUNT={n}": {"GOMP_SPINCOUNT": str(n)} for n in (30_000, 10_000, 1_000)},
    "OMP_WAIT_POLICY=PASSIVE": {"OMP_WAIT_POLICY": "PASSIVE"},
}


@contextmanager
def occupy_core(busy: bool) -> Iterator[None]:
    """Keep a core busy with another process, if asked to."""
    if not busy:
        yield
        return
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as other:
        try:
            yield
        finally:
            other.kill()


def step_seconds(shape: str, steps: int, environment: dict[str, str]) -> float:
    """Return the median seconds of a step in a new process."""
    found = child_figures(__file__, "--child", shape, str(steps), **environment)
    return float(found["seconds"])


def compare_settings(names: list[str], rounds: int, steps: int) -> list[dict[str, Any]]:
    """Time all settings alternately, quiet and busy; return a row for each."""
    found: dict[tuple[str, bool], list[float]] = {(n, b): [] for n in names for b in (False, True)}
    for number in range(rounds):
        for way in list(found)[:: -1 if number % 2 else 1]:
            with occupy_core(way[1]):
                found[way].append(step_seconds("e5", steps, SETTINGS[way[0]]))
    default = statistics.median(found[names[0], False])
    rows = []
    for name in names:
        quiet, busy = (statistics.median(found[name, state]) for state in (False, True))
        rows.append(
            {"setting": name, "quiet s": quiet, "busy s": busy, "busy / quiet": busy / quiet,
             "quiet / default": quiet / default, "busy min": min(found[name, True]),
             "busy max": max(found[name, True])}
        )  # fmt: skip
    return rows


def compare_jobs(shapes: list[str], rounds: int, steps: int) -> list[dict[str, Any]]:
    """Time one job with all threads, and one job per core with a thread each; return the rows."""
    cores = torch.get_num_threads()
    rows = []
    for shape in shapes:
        alone, shared = [], []
        for _ in range(rounds):
            alone.append(step_seconds(shape, steps, {}))
            with ThreadPoolExecutor(cores) as pool:
                calls = [
                    pool.submit(step_seconds, shape, steps, {"OMP_NUM_THREADS": "1"})
                    for _ in range(cores)
                ]
                shared += [call.result() for call in calls]
        one, each = statistics.median(alone), statistics.median(shared)
        rows.append({"model": shape, "one job: s": one, f"{cores} jobs: s": each,
                     "throughput ratio": cores * one / each})  # fmt: skip
    return rows


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    if args.child:
        seconds = time_steps(SHAPES[args.child[0]], [], BATCH, LENGTH, int(args.child[1]))
        print(json.dumps({"seconds": seconds}))
        return
    names, shapes = list(SETTINGS), list(SHAPES)
    rounds, steps = (1, 2) if args.quick else (2, 3)
    sections = [
        Section(
            "Quiet and busy",
            f"BERT in the shape of e5-small in fp32, all weights, batches of {BATCH} x {LENGTH} "
            "tokens. Seconds: the median over starts of each start's median step. Busy: one other "
            "process computes without a pause. If it gets half of one of two cores, a step takes "
            "at least 1.33 times as long; if all three threads get the same share, 1.5 times.",
            compare_settings(names[:2] if args.quick else names, rounds, steps),
        ),
        Section(
            "Several jobs at once",
            "The same step in one job with a thread per core, and in one job per core with one "
            "thread each. `throughput ratio`: steps per second of all jobs together, relative to "
            "the one job. tiny2 has 3 layers of width 312, e5 12 of width 384.",
            compare_jobs(shapes[:1] if args.quick else shapes, rounds, steps),
        ),
    ]
    remark = "Freed memory stays in the process, as in training."
    publish("A machine that is shared", sections, args, remark)


if __name__ == "__main__":
    main()
