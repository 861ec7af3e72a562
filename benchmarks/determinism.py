"""Differentiate the same several times, and tell how far the gradients of two passes differ.

    python benchmarks/determinism.py --device cuda

Runs are equal bit for bit where this is 0. Kernels that add atomically, as mamba-ssm's backward
does, add in another order each time: what is found is then the tolerance of two equal runs.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from common import allocator
from common.networks import SMALL, draw_batch
from common.report import Section, command_line, publish
from common.scans import BATCH, NAMES, WIDTH, draw
from torch import Tensor, nn

from kinopoisk_ft.models.mamba import MambaClassifier
from kinopoisk_ft.ops.selective_scan import selective_scan

Backward = Callable[[], Sequence[Tensor]]


def of_scan(length: int, device: torch.device) -> tuple[Sequence[str], Backward]:
    """Return the scan's inputs by name, and their gradients each time anew."""
    inputs = [x.detach().to(device).requires_grad_() for x in draw(length)]
    grad = torch.randn(BATCH, length, WIDTH).to(device)
    return NAMES, lambda: torch.autograd.grad(
        selective_scan(*inputs, delta_softplus=True), inputs, grad
    )


def of_model(length: int, device: torch.device) -> tuple[Sequence[str], Backward]:
    """Return the parameters of a small classifier by name, and their gradients each time anew."""
    torch.manual_seed(0)
    model = MambaClassifier(SMALL, 2).to(device)
    ids, labels = (x.to(device) for x in draw_batch(SMALL, length))
    names, weights = zip(*model.named_parameters(), strict=True)
    return names, lambda: torch.autograd.grad(
        nn.functional.cross_entropy(model(ids).logits, labels), weights
    )


def differences(backward: Backward, times: int) -> list[float]:
    """Return, of each gradient, its largest difference from the first over its largest value."""
    first = backward()
    found = [0.0] * len(first)
    for _ in range(times - 1):
        for i, (now, then) in enumerate(zip(backward(), first, strict=True)):
            scale = then.abs().max().clamp(min=torch.finfo(then.dtype).tiny)
            found[i] = max(found[i], float((now - then).abs().max() / scale))
    return found


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--times", type=int, default=10)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")  # which kernels were chosen
    device = torch.device(args.device)
    length, times = (64, 3) if args.quick else (args.length, args.times)
    torch.manual_seed(0)
    sections = []
    for title, make in (("Selective scan", of_scan), ("Mamba classifier", of_model)):
        names, backward = make(length, device)
        found = sorted(zip(differences(backward, times), names, strict=True), reverse=True)
        rows: list[dict[str, Any]] = [{"gradient": n, "difference": d} for d, n in found[:7]]
        note = f"The largest of {len(found)} gradients; {device}, length {length}, {times} passes."
        sections.append(Section(title, note, rows))
    publish("Differences between equal backward passes", sections, args, allocator.DEFAULT)


if __name__ == "__main__":
    main()
