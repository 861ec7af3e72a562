"""Estimate the hours, money and communication of training on a million reviews.

    python benchmarks/cost_model.py --markdown benchmarks/results/cost_model.md

Nothing is timed. FLOPs follow Kaplan et al. (arXiv:2001.08361): for each weight and token, 2 in the
forward pass and 4 in the backward pass.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any

from common.report import Section, command_line, publish

# Weights and gradients are fp32.
GRADIENT_BYTES = 4
# The number of GPUs that the fast link connects.
NODE = 8


@dataclass(frozen=True)
class Encoder:
    """A transformer: each layer of width d has 12 d² weights (feed-forward width 4d)."""

    layers: int
    width: int
    vocabulary: int

    @property
    def weights(self) -> int:
        """Return the number of weights that are multiplied with every token."""
        return 12 * self.layers * self.width**2

    @property
    def embeddings(self) -> int:
        """Return the number of weights of the token embeddings."""
        return self.vocabulary * self.width


@dataclass(frozen=True)
class Approach:
    """A way to train: how much is computed, and how many gradients are exchanged.

    Args:
        flops: FLOPs for each weight of the layers and each token.
        trained: the share of the layers' weights that have gradients.
        embeddings: whether the embeddings are trained, too.
    """

    flops: float
    trained: float
    embeddings: bool = False


def frozen(share: float) -> Approach:
    """Train the upper `share` of the layers; the lower ones only run forward."""
    return Approach(2 + 4 * share, share)


FULL = Approach(6, 1, embeddings=True)
# The backward pass computes the gradients of all activations, but of almost no weights.
LORA = Approach(4, 0.003)
SMALL = Encoder(12, 384, 32_000)
BASE = Encoder(12, 768, 120_000)
BILLION = Encoder(24, 1792, 50_000)
ROWS = {
    "34 M, as e5-small-ru, full": (SMALL, FULL),
    "0.18 B, as rubert-base, full": (BASE, FULL),
    "1 B, full": (BILLION, FULL),
    "1 B, upper 6 of 24 layers": (BILLION, frozen(0.25)),
    "1 B, LoRA": (BILLION, LORA),
}
GPUS = (1, 8, 64)


def step_seconds(
    model: Encoder, approach: Approach, gpus: int, args: argparse.Namespace
) -> tuple[float, float]:
    """Return the seconds of a step's computation, and of its exchange of gradients."""
    flops = approach.flops * model.weights * args.batch * args.tokens
    compute = flops / (args.peak * 1e12 * args.utilisation)
    trained = approach.trained * model.weights + approach.embeddings * model.embeddings
    link = (args.link if gpus <= NODE else args.network) * 1e9
    exchange = 2 * (gpus - 1) / gpus * trained * GRADIENT_BYTES / link
    return compute, exchange


def row(name: str, model: Encoder, approach: Approach, args: argparse.Namespace) -> dict[str, Any]:
    """Return the FLOPs, and for each number of GPUs the hours, messages and money."""
    seen = args.reviews * args.epochs
    found: dict[str, Any] = {
        "model": name,
        "EFLOP": approach.flops * model.weights * seen * args.tokens / 1e18,
    }
    for gpus in GPUS:
        compute, exchange = step_seconds(model, approach, gpus, args)
        hours = seen / (args.batch * gpus) * (compute + exchange) / 3600
        found[f"h on {gpus}"] = hours
        if gpus > 1:
            found[f"messages % on {gpus}"] = 100 * exchange / (compute + exchange)
        found[f"$ on {gpus}"] = hours * gpus * args.price
    return found


def options() -> argparse.ArgumentParser:
    """Return the parser, which has an option for every assumption."""
    parser = command_line(__doc__)
    parser.add_argument("--reviews", type=int, default=1_000_000)
    parser.add_argument("--tokens", type=int, default=256, help="tokens per review")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch", type=int, default=32, help="reviews per GPU and step")
    parser.add_argument(
        "--peak", type=float, default=989, help="TFLOP/s of a GPU (default: H100 in bf16)"
    )
    parser.add_argument(
        "--utilisation", type=float, default=0.3, help="share of the peak that training reaches"
    )
    parser.add_argument(
        "--link", type=float, default=360, help="GB/s per GPU and direction within a machine"
    )
    parser.add_argument("--network", type=float, default=40, help="GB/s per GPU between machines")
    parser.add_argument("--price", type=float, default=3.0, help="dollars per GPU and hour")
    return parser


def rows(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the rows of the table."""
    return [row(name, model, approach, args) for name, (model, approach) in ROWS.items()]


def main() -> None:
    args = options().parse_args()
    note = (
        f"{args.reviews:,} reviews of {args.tokens} tokens, {args.epochs} epochs, {args.batch} "
        f"reviews per GPU and step. Each GPU reaches {args.utilisation:.0%} of {args.peak:g} "
        f"TFLOP/s and costs ${args.price:g} per hour. {args.link:g} GB/s within a machine of "
        f"{NODE} GPUs, {args.network:g} GB/s between machines. `messages %`: the share of the time "
        "that exchanges gradients; it is assumed not to overlap with computation."
    )
    remark = "Nothing is timed, so the machine does not matter."
    publish("Cost of training, on paper", [Section("By GPUs", note, rows(args))], args, remark)


if __name__ == "__main__":
    main()
