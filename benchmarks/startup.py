"""Measure how much longer the first training step of a process takes than a later one.

    python benchmarks/startup.py --json startup.json --markdown startup.md

numba compiles the kernels once and stores them on disk, where later processes load them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from typing import Any

import torch
from common import allocator
from common.children import child_figures
from common.networks import BATCH, LABELS, SMALL, draw_batch, training_step
from common.report import Section, command_line, publish

from kinopoisk_ft.models.mamba import MambaClassifier

LENGTH, STEPS = 128, 6


def first_and_later(backend: str) -> dict[str, float]:
    """Return the seconds of this process's first step, and the median of the later ones."""
    torch.manual_seed(0)
    model = MambaClassifier(SMALL, LABELS, scan_backend=backend)
    step = training_step(model, draw_batch(SMALL, LENGTH))
    seconds = []
    for _ in range(STEPS):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    return {"first": seconds[0], "later": statistics.median(seconds[1:])}


def measure(processes: int) -> Section:
    """Compare processes that compile kernels, load them, or need none."""
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        plan = {"numba, nothing on disk": ("numba", 1), "numba, kernels on disk": (
            "numba", processes), "torch, no kernels": ("torch", processes)}  # fmt: skip
        for name, (backend, count) in plan.items():
            runs = [child_figures(__file__, "--backend", backend, NUMBA_CACHE_DIR=folder)
                    for _ in range(count)]  # fmt: skip
            above = [run["first"] - run["later"] for run in runs]
            rows.append({
                "process": name, "first step s": statistics.median(r["first"] for r in runs),
                "later step s": statistics.median(r["later"] for r in runs),
                "difference s": statistics.median(above), "max": max(above),
            })  # fmt: skip
    note = (
        f"Width {SMALL.hidden_size}, {SMALL.num_hidden_layers} layers, vocabulary "
        f"{SMALL.vocab_size}, batch {BATCH}, length {LENGTH}, forward, backward and "
        f"AdamW; `later step` is the median of {STEPS - 1} steps. The figures are medians over "
        f"processes: {processes} of each kind, but 1 that compiles. The processes without kernels "
        "show how long the first step of PyTorch itself takes."
    )
    return Section("The first step of a process", note, rows)


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--backend", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.backend:
        print(json.dumps(first_and_later(args.backend)))
    else:
        section = measure(processes=1 if args.quick else 5)
        publish("Start of a process that trains Mamba", [section], args, allocator.DEFAULT)


if __name__ == "__main__":
    main()
