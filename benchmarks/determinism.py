"""Repeat the same backward pass, and measure how much its gradients differ.

    python benchmarks/determinism.py --device cuda

If the difference is 0, runs are equal bit for bit. Kernels with atomic additions, such as
mamba-ssm's backward pass, add in a different order each time; the measured difference is then the
tolerance for two equal runs. Because mamba-ssm needs a GPU, the script also adds the same terms in
random orders on the CPU, and then trains with gradients that are disturbed by this difference.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from common import allocator
from common.atomics import added_in_some_order, parts_of_blocks
from common.networks import SMALL, draw_batch
from common.report import Section, command_line, publish
from common.scans import BATCH, NAMES, WIDTH, draw
from torch import Tensor, nn

from kinopoisk_ft.models.mamba import MambaClassifier
from kinopoisk_ft.ops.scan.op import selective_scan

Backward = Callable[[], Sequence[Tensor]]


def of_scan(length: int, device: torch.device) -> tuple[Sequence[str], Backward]:
    """Return the names of the scan's inputs, and a function that computes their gradients."""
    inputs = [x.detach().to(device).requires_grad_() for x in draw(length)]
    grad = torch.randn(BATCH, length, WIDTH).to(device)
    return NAMES, lambda: torch.autograd.grad(selective_scan(*inputs), inputs, grad)


def of_model(length: int, device: torch.device) -> tuple[Sequence[str], Backward]:
    """Return a small classifier's parameter names, and a function that computes the gradients."""
    torch.manual_seed(0)
    model = MambaClassifier(SMALL, 2).to(device)
    ids, labels = (x.to(device) for x in draw_batch(SMALL, length))
    names, weights = zip(*model.named_parameters(), strict=True)
    return names, lambda: torch.autograd.grad(
        nn.functional.cross_entropy(model(ids).logits, labels), weights
    )


def differences(backward: Backward, times: int) -> list[float]:
    """Return for each gradient the largest difference from the first pass.

    Each difference is relative to the largest absolute value of the gradient.
    """
    first = backward()
    found = [0.0] * len(first)
    for _ in range(times - 1):
        for i, (now, then) in enumerate(zip(backward(), first, strict=True)):
            scale = then.abs().max().clamp(min=torch.finfo(then.dtype).tiny)
            found[i] = max(found[i], float((now - then).abs().max() / scale))
    return found


def of_orders(length: int) -> tuple[Sequence[str], Backward]:
    """Return the names of the gradients that mamba-ssm adds atomically, and a function.

    Each call of the function sums them in a different random order.
    """
    parts = parts_of_blocks(draw(length), torch.randn(BATCH, length, WIDTH))
    return [*parts], lambda: [added_in_some_order(every) for every in parts.values()]


def of_training(length: int, steps: int, disturbance: float) -> list[dict[str, Any]]:
    """Train twice on the same batches, once with disturbed gradients; return the differences.

    The disturbance applies to all gradients, not only those of the scan. It is random, up to
    `disturbance` times the largest absolute value of the gradient.
    """
    torch.manual_seed(0)
    first = MambaClassifier(SMALL, 2)
    second = copy.deepcopy(first)
    for weight in second.parameters():
        weight.register_hook(
            lambda g: g + disturbance * g.abs().max() * (2 * torch.rand_like(g) - 1)
        )
    batches = [draw_batch(SMALL, length) for _ in range(steps)]
    losses = torch.tensor([trained(model, batches) for model in (first, second)])
    apart = (losses[0] - losses[1]).abs()
    pairs = zip(first.parameters(), second.parameters(), strict=True)
    with torch.no_grad():
        weights = max(float((a - b).abs().max() / a.abs().max()) for a, b in pairs)
    return [
        {"after steps": n, "losses differ by": float(apart[:n].max()),
         "weights differ by": weights if n == steps else None}
        for n in (1, steps // 10, steps)
    ]  # fmt: skip


def trained(model: nn.Module, batches: Sequence[tuple[Tensor, Tensor]]) -> list[float]:
    """Train on each batch once; return the loss of each batch after its step."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    losses = []
    for ids, labels in batches:
        nn.functional.cross_entropy(model(ids).logits, labels).backward()
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            losses.append(nn.functional.cross_entropy(model(ids).logits, labels).item())
    return losses


def ranked(names: Sequence[str], found: Sequence[float]) -> list[dict[str, Any]]:
    """Return the rows of a table with the seven largest differences, largest first."""
    pairs = sorted(zip(found, names, strict=True), reverse=True)[:7]
    return [{"gradient": name, "difference": difference} for difference, name in pairs]


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--times", type=int, default=10)
    args = parser.parse_args()
    # The log says which kernels were chosen.
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    device = torch.device(args.device)
    length, times = (64, 3) if args.quick else (args.length, args.times)
    torch.manual_seed(0)
    sections = []
    for title, make in (("Selective scan", of_scan), ("Mamba classifier", of_model)):
        names, backward = make(length, device)
        rows = ranked(names, differences(backward, times))
        note = (
            f"The largest differences among {len(names)} gradients; {device}, length {length}, "
            f"{times} passes."
        )
        sections.append(Section(title, note, rows))
    names, backward = of_orders(length)
    rows = ranked(names, differences(backward, times))
    note = f"The terms that mamba-ssm adds atomically, added in {times} random orders on the CPU."
    sections.append(Section("A different order of additions", note, rows))
    largest, steps = rows[0]["difference"], 20 if args.quick else 100
    note = (
        "AdamW. In the second training, each gradient is changed at random by up to "
        f"{largest:.1e} of its largest value."
    )
    rows = of_training(length, steps, largest)
    sections.append(Section("Two trainings with such differences", note, rows))
    publish("Differences between equal backward passes", sections, args, allocator.DEFAULT)


if __name__ == "__main__":
    main()
