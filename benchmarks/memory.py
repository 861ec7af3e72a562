"""Measure the memory that the selective scan takes beyond its inputs, outputs and gradients.

    python benchmarks/memory.py --json memory.json --markdown memory.md

Each implementation runs in new processes, with the default settings of the allocator. The result is
the peak resident size during a forward and a backward pass, as Linux reports it, minus the size
before, the output and the gradients.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
from pathlib import Path
from typing import Any

import torch
from common import allocator
from common.children import child_figures
from common.report import Section, command_line, missing, publish
from common.scans import (
    BATCH,
    MAMBAPY,
    OURS,
    STATES,
    TRANSFORMERS,
    WIDTH,
    Scan,
    differentiate,
    draw,
    scans,
)
from torch import Tensor

PROCESS = Path("/proc/self")
MIB = 2**20


def resident(field: str) -> int:
    """Return VmRSS (now) or VmHWM (the peak since the last reset) in bytes."""
    for line in (PROCESS / "status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise LookupError(field)


def nbytes(tensors: list[Tensor]) -> int:
    return sum(x.untyped_storage().nbytes() for x in tensors)


def peak_beyond(scan: Scan, length: int) -> int:
    """Return the peak bytes of a forward and backward pass, without its inputs and results."""
    # The first pass compiles kernels and starts threads.
    differentiate(scan, draw(8), torch.randn(BATCH, 8, WIDTH))
    inputs, grad = draw(length), torch.randn(BATCH, length, WIDTH)
    gc.collect()
    # Writing 5 resets the peak; see proc(5).
    (PROCESS / "clear_refs").write_text("5")
    before = resident("VmRSS")
    results = differentiate(scan, inputs, grad)
    return resident("VmHWM") - before - nbytes(results)


def kept(scan: Scan, length: int) -> int:
    """Return the bytes that autograd saves in the forward pass for the backward pass."""
    inputs = draw(length)
    storages: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        storages[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        out = scan(*inputs)
    given = {x.untyped_storage().data_ptr() for x in (*inputs, out)}
    return sum(size for address, size in storages.items() if address not in given)


def measure(length: int, processes: int) -> Section:
    """Measure every implementation; each figure is the median over processes."""
    names = [name for name in scans() if name != TRANSFORMERS]
    found: dict[str, dict[str, float]] = {}
    for name in names:
        runs = [child_figures(__file__, "--way", name, "--length", str(length))
                for _ in range(processes)]  # fmt: skip
        found[name] = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
    own = found[OURS]["peak"]
    rows: list[dict[str, Any]] = [
        {"way": name, "peak MiB": run["peak"] / MIB, "ratio": run["peak"] / own,
         "kept for the backward MiB": run["kept"] / MIB}
        for name, run in found.items()
    ]  # fmt: skip
    inputs = draw(length)
    given = (2 * nbytes(inputs) + 2 * nbytes(inputs[:1])) / MIB
    note = (
        f"Batch {BATCH}, length {length}, width {WIDTH}, {STATES} states, float32. `peak`: the "
        "peak resident size during a forward and backward pass, minus the size before it, the "
        f"output and the gradients (with the inputs, {given:.0f} MiB). The figures are medians; "
        f"new processes: {processes}. `kept`: the tensors that autograd saves in the forward pass, "
        "without inputs and output, counted by hooks. For comparison, all states of the scan have "
        f"{states_mib(length):.0f} MiB."
    )
    note += missing([MAMBAPY], found)
    return Section("Memory beyond inputs, outputs and gradients", note, rows)


def states_mib(length: int) -> float:
    return BATCH * length * WIDTH * STATES * 4 / MIB


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--way", choices=scans(), help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.manual_seed(0)
    if args.way:
        scan = scans()[args.way]
        # Measure the peak first: memory that the heap has already would not count.
        print(json.dumps({"peak": peak_beyond(scan, args.length), "kept": kept(scan, args.length)}))
    elif not (PROCESS / "clear_refs").exists():
        print("skipped: peak memory is read from /proc, which only Linux has")
    else:
        section = measure(args.length, processes=1 if args.quick else 3)
        publish("Memory of the selective scan on a CPU", [section], args, allocator.DEFAULT)


if __name__ == "__main__":
    main()
