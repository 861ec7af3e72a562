"""Compare the scan of Mamba-2 and training steps of a small Mamba-2 with those of transformers.

    python benchmarks/ssd.py --json ssd.json --markdown ssd.md

All implementations alternate in one process, with the same inputs and weights, so their ratio is
reliable.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from common import allocator
from common.report import Section, command_line, publish
from common.timing import alternate, ratios
from torch import Tensor, nn
from transformers import Mamba2Config, Mamba2Model
from transformers.models.mamba2.modeling_mamba2 import mamba2_chunk_scan

from kinopoisk_ft.models.mamba import MambaClassifier
from kinopoisk_ft.ops.ssd.op import ssd

BATCH, HEADS, HEAD_DIM, STATES, LABELS = 8, 16, 64, 128, 2
OURS, LOOP = "ours", "loop over time"
SMALL = Mamba2Config(
    vocab_size=4096, hidden_size=256, num_hidden_layers=4, num_heads=8, head_dim=64, n_groups=1
)


def draw(length: int) -> list[Tensor]:
    """Return x, dt (after softplus), A, B and C, which require gradients."""
    found = [
        torch.randn(BATCH, length, HEADS, HEAD_DIM),
        nn.functional.softplus(torch.randn(BATCH, length, HEADS) - 4),
        -torch.arange(1.0, HEADS + 1),
        torch.randn(BATCH, length, 1, STATES),
        torch.randn(BATCH, length, 1, STATES),
    ]
    return [x.requires_grad_() for x in found]


def ways(length: int) -> dict[str, Callable[[], object]]:
    """Return a forward and backward pass of each implementation on the same inputs."""
    inputs, grad = draw(length), torch.randn(BATCH, length, HEADS, HEAD_DIM)
    scans: dict[str, Callable[..., Tensor]] = {
        OURS: ssd,
        "transformers, chunks of 256 (its default)": partial(mamba2_chunk_scan, chunk_size=256),
        "transformers, chunks of 64": partial(mamba2_chunk_scan, chunk_size=64),
        LOOP: partial(ssd, backend="reference"),
    }
    return {
        name: partial(lambda scan: torch.autograd.grad(scan(*inputs), inputs, grad), scan)
        for name, scan in scans.items()
    }


def steps(length: int) -> dict[str, Callable[[], object]]:
    """Return a training step of our model and of transformers, with the same weights."""
    torch.manual_seed(0)
    ours = MambaClassifier(SMALL, LABELS)
    theirs, head = Mamba2Model(SMALL), nn.Linear(SMALL.hidden_size, LABELS)
    theirs.load_state_dict(ours.backbone.state_dict())
    head.load_state_dict(ours.classifier.state_dict())
    ids = torch.randint(1, SMALL.vocab_size, (BATCH, length))
    labels = torch.randint(0, LABELS, (BATCH,))

    def of_theirs() -> Tensor:
        logits: Tensor = head(theirs(ids, use_cache=False).last_hidden_state[:, -1])
        return logits

    def of_ours() -> Tensor:
        logits: Tensor = ours(ids).logits
        return logits

    with torch.no_grad():
        torch.testing.assert_close(of_ours(), of_theirs(), rtol=1e-4, atol=1e-4)

    def step(logits: Callable[[], Tensor], optimizer: torch.optim.Optimizer) -> None:
        nn.functional.cross_entropy(logits(), labels).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    both = {OURS: (of_ours, [ours]), "transformers": (of_theirs, [theirs, head])}
    return {
        name: partial(
            step,
            logits,
            torch.optim.AdamW([p for m in modules for p in m.parameters()], fused=True),
        )
        for name, (logits, modules) in both.items()
    }


def rows(length: int, jobs: dict[str, Callable[[], object]], rounds: int) -> list[dict[str, Any]]:
    """Time the jobs alternately; return their rows, with ratios to ours."""
    seconds = alternate(jobs, rounds)
    return [
        {
            "length": length, "way": name,
            "ms": statistics.median(seconds[name]) * 1000,
            **ratios(seconds[name], seconds[OURS]),
        }
        for name in jobs
    ]  # fmt: skip


def main() -> None:
    """Run the command line."""
    parser = command_line(__doc__)
    allocator.add_option(parser)
    args = parser.parse_args()
    remark = allocator.settle(args)
    lengths, rounds = ([128], 2) if args.quick else ([128, 512], 5)
    scans = [row for n in lengths for row in rows(n, ways(n), rounds)]
    whole = [row for n in lengths for row in rows(n, steps(n), rounds)]
    publish(
        "Mamba-2 on a CPU",
        [
            Section(
                "Scan",
                f"Batch {BATCH}, {HEADS} heads of {HEAD_DIM}, {STATES} states, float32, forward "
                f"and backward. `ratio`: time divided by ours, the median of {rounds} rounds.",
                scans,
            ),
            Section(
                "A training step of a small model",
                "Width 256, 4 layers, vocabulary 4096, AdamW; the same weights and logits.",
                whole,
            ),
        ],
        args,
        remark,
    )


if __name__ == "__main__":
    main()
