"""Compare an optimizer step of one process with that of two processes that share its batch.

    python benchmarks/scaling.py --json scaling.json --markdown scaling.md

The batch stays the same, so two processes together do the work of one. They share the cores. All
processes are started by torchrun, even a single one.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import statistics
import subprocess
import sys

import torch
from common.report import Section, command_line, publish
from common.shapes import SMALL, TINY2
from common.training_step import time_steps

from kinopoisk_ft.training.distributed.processes import is_main, join_processes

BATCH, LENGTH = 16, 128
SHAPES = {"as rubert-tiny2": TINY2, "as e5-small": SMALL}


def measure(shape: str, strategy: str, steps: int) -> None:
    """Train in a process that torchrun started; rank 0 prints the seconds of a step."""
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    settings = [f"trainer.strategy={strategy}", "trainer.lr=1e-5", "trainer.head_lr=null"]
    with join_processes(strategy, "cpu"):
        seconds = time_steps(SHAPES[shape], settings, BATCH, LENGTH, steps)
        if is_main():
            print(json.dumps(seconds))


def start(count: int, threads: int, shape: str, strategy: str, steps: int) -> float:
    """Return the seconds of a step of `count` processes with `threads` threads each."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone",
               f"--nproc-per-node={count}", __file__, "--child", shape, strategy,
               str(steps)]  # fmt: skip
    done = subprocess.run(
        command, capture_output=True, text=True,
        env={**os.environ, "OMP_NUM_THREADS": str(threads)},
    )  # fmt: skip
    if done.returncode:
        sys.stderr.write(done.stderr)
        raise SystemExit(f"failed: {' '.join(command)}")
    return float(done.stdout.strip().splitlines()[-1])


def compare(shape: str, rounds: int, steps: int) -> list[dict[str, object]]:
    """Time all combinations of processes, threads and strategy alternately; return their rows."""
    cores = os.cpu_count() or 1
    part = max(1, cores // 2)
    ways = [(1, cores, "ddp"), (1, part, "ddp"), (2, part, "ddp"), (2, part, "fsdp")]
    found: dict[tuple[int, int, str], list[float]] = {way: [] for way in ways}
    for number in range(rounds):
        for way in ways[:: -1 if number % 2 else 1]:
            found[way].append(start(way[0], way[1], shape, way[2], steps))
    one = statistics.median(found[ways[1]])
    return [
        {"model": shape, "processes": way[0], "threads of each": way[1], "strategy": way[2],
         "step s": statistics.median(times), "min": min(times), "max": max(times),
         "speedup": one / statistics.median(times)}
        for way, times in found.items()
    ]  # fmt: skip


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    if args.child:
        shape, strategy, steps = args.child
        measure(shape, strategy, int(steps))
        return
    rows = []
    for shape in list(SHAPES)[: 1 if args.quick else 2]:
        rows += compare(shape, rounds=1 if args.quick else 2, steps=3 if args.quick else 4)
    note = (
        f"BERT in fp32 with AdamW, an effective batch of {BATCH} reviews of {LENGTH} tokens, "
        "backend gloo on one machine. Seconds: the median over starts of each start's median step. "
        "`speedup`: relative to one process with half of the cores."
    )
    section = Section("A step of one process and of two", note, rows)
    publish("Scaling", [section], args, "Freed memory stays in the process, as in training.")


if __name__ == "__main__":
    main()
