"""Time the selective scan and the causal convolution, forward and backward, against other ways.

    python benchmarks/scan.py --quick --json scan.json

All ways run in turn in one process on the same inputs (batch 8, width 512, 16 states); what counts
is their ratio. `mambapy` takes part where it is installed, the loop of `transformers` at the
shortest length.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor, nn

from kinopoisk_ft.ops.causal_conv import causal_conv1d
from kinopoisk_ft.ops.selective_scan import selective_scan

BATCH, WIDTH, STATES, TAPS = 8, 512, 16, 4
LONGEST_LOOP = 128  # the time of the loop of `transformers` grows with the square of the length


def transformers_scan() -> Callable[..., Tensor] | None:
    """Return the loop that `transformers` runs without extra kernels."""
    try:
        from transformers.models.mamba.modeling_mamba import mamba_selective_scan
    except ImportError:
        return None

    def scan(
        u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor
    ) -> Tensor:
        u, delta, B, C, z = (x.transpose(1, 2) for x in (u, delta, B, C, z))
        return mamba_selective_scan(u, delta, A, B, C, D, z=z, delta_softplus=True).transpose(1, 2)

    return scan


def mambapy_scan() -> Callable[..., Tensor] | None:
    """Return the parallel scan of mamba.py."""
    try:
        from mambapy.pscan import pscan  # type: ignore[import-not-found]
    except ImportError:
        return None

    def scan(
        u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor
    ) -> Tensor:
        delta = nn.functional.softplus(delta)
        inflow = (delta * u)[..., None] * B[:, :, None]
        states = pscan(torch.exp(delta[..., None] * A), inflow)
        return ((states @ C[..., None]).squeeze(3) + D * u) * nn.functional.silu(z)

    return scan


def draw(length: int) -> list[Tensor]:
    """Return u, delta, A, B, C, D, z as a fresh Mamba would meet them."""
    sequence, weights = (BATCH, length, WIDTH), (BATCH, length, STATES)
    A = -torch.arange(1.0, STATES + 1).repeat(WIDTH, 1)
    delta = torch.randn(sequence) - 4
    return [torch.randn(sequence), delta, A, torch.randn(weights), torch.randn(weights),
            torch.randn(WIDTH), torch.randn(sequence)]  # fmt: skip


def milliseconds(function: Callable[..., Tensor], inputs: list[Tensor], seconds: float) -> float:
    """Return the median time of forward and backward; a slow way runs once."""
    leaves = [x.requires_grad_() for x in inputs]
    grad = torch.randn_like(inputs[0])
    times: list[float] = []
    while sum(times) < seconds:
        start = time.perf_counter()
        torch.autograd.grad(function(*leaves), leaves, grad)
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times[1:] or times)


def rows(lengths: list[int], seconds: float) -> list[dict[str, float | int | str]]:
    """Time every way at every length."""
    ways: dict[str, Callable[..., Tensor] | None] = {
        backend: partial(selective_scan, delta_softplus=True, backend=backend)
        for backend in ("numba", "torch", "reference")
    }
    ways |= {"transformers": transformers_scan(), "mambapy": mambapy_scan()}
    for way in filter(None, ways.values()):
        milliseconds(way, draw(2), 0.01)  # compiles kernels, wakes threads
    milliseconds(causal_conv1d, [draw(2)[0], torch.randn(WIDTH, TAPS)], 0.01)
    found: list[dict[str, float | int | str]] = []
    for length in lengths:
        inputs = draw(length)
        for name, scan in ways.items():
            if scan is None or (name == "transformers" and length > LONGEST_LOOP):
                continue
            took = milliseconds(scan, inputs, seconds)
            found.append({"operator": "scan", "length": length, "way": name, "ms": took})
        taps = [inputs[0], torch.randn(WIDTH, TAPS), torch.randn(WIDTH)]
        for name in ("numba", "torch"):
            took = milliseconds(partial(causal_conv1d, backend=name), taps, seconds)
            found.append({"operator": "conv", "length": length, "way": name, "ms": took})
    return found


def table(found: list[dict[str, float | int | str]]) -> str:
    """Return the rows as text, each with its ratio to numba."""
    own = {(r["operator"], r["length"]): float(r["ms"]) for r in found if r["way"] == "numba"}
    lines = [f"{'operator':9}{'length':>7}  {'way':13}{'ms':>9}{'x numba':>9}"]
    for r in found:
        took = float(r["ms"])
        ratio = took / own[r["operator"], r["length"]]
        lines.append(f"{r['operator']:9}{r['length']:7}  {r['way']:13}{took:9.1f}{ratio:9.1f}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Time the scan and the convolution")
    parser.add_argument("--quick", action="store_true", help="two lengths, under a minute")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    args = parser.parse_args()
    torch.manual_seed(0)
    found = rows([128, 512], 0.5) if args.quick else rows([128, 256, 512, 1024], 3.0)
    print(table(found))
    if args.json:
        where = {
            "cpu": platform.processor() or platform.machine(),
            "threads": torch.get_num_threads(),
        }
        versions = {name: version(name) for name in ("torch", "numba", "transformers")}
        sizes = {"batch": BATCH, "width": WIDTH, "states": STATES}
        report = {**where, "versions": versions, **sizes, "rows": found}
        args.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
