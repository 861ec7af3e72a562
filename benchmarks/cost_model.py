"""Work out, on paper, what training on a million reviews takes: hours, money, share of messages.

    python benchmarks/cost_model.py --markdown benchmarks/results/cost_model.md

Nothing is timed. FLOPs by Kaplan et al. (arXiv:2001.08361): 2 a weight and token forward, 4 back.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any

from common.report import Section, command_line, publish

GRADIENT_BYTES = 4  # weights and gradients stay fp32
NODE = 8  # GPUs that are joined by the fast link


@dataclass(frozen=True)
class Encoder:
    """Layers of width d with a feed-forward part of 4d: 12 d² weights each, beside embeddings."""

    layers: int
    width: int
    vocabulary: int

    @property
    def weights(self) -> int:
        """Return those that multiply every token."""
        return 12 * self.layers * self.width**2

    @property
    def embeddings(self) -> int:
        """Return those that are looked up."""
        return self.vocabulary * self.width


@dataclass(frozen=True)
class Approach:
    """What trains.

    Args:
        flops: a weight of the layers and a token.
        trained: share of the layers' weights that have gradients to exchange.
        embeddings: whether these train, too.
    """

    flops: float
    trained: float
    embeddings: bool = False


def frozen(share: float) -> Approach:
    """Train the upper `share` of the layers; what is below runs forward alone."""
    return Approach(2 + 4 * share, share)


FULL = Approach(6, 1, embeddings=True)
# All gradients of activations, next to none of weights.
LORA = Approach(4, 0.003)
SMALL = Encoder(12, 384, 32_000)
BASE = Encoder(12, 768, 120_000)
BILLION = Encoder(24, 1792, 50_000)
ROWS = {
    "33 M, as e5-small-ru, full": (SMALL, FULL),
    "0.18 B, as rubert-base, full": (BASE, FULL),
    "1 B, full": (BILLION, FULL),
    "1 B, upper 6 of 24 layers": (BILLION, frozen(0.25)),
    "1 B, LoRA": (BILLION, LORA),
}
GPUS = (1, 8, 64)


def step_seconds(
    model: Encoder, approach: Approach, gpus: int, args: argparse.Namespace
) -> tuple[float, float]:
    """Return the seconds of computing and of exchanging gradients in one step."""
    flops = approach.flops * model.weights * args.batch * args.tokens
    compute = flops / (args.peak * 1e12 * args.utilisation)
    trained = approach.trained * model.weights + approach.embeddings * model.embeddings
    link = (args.link if gpus <= NODE else args.network) * 1e9
    exchange = 2 * (gpus - 1) / gpus * trained * GRADIENT_BYTES / link
    return compute, exchange


def row(name: str, model: Encoder, approach: Approach, args: argparse.Namespace) -> dict[str, Any]:
    """Return the work, then hours, share of messages and money by the number of GPUs."""
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
    """Return the parser: every assumption is an option."""
    parser = command_line(__doc__)
    parser.add_argument("--reviews", type=int, default=1_000_000)
    parser.add_argument("--tokens", type=int, default=256, help="of a review, as it is cut")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch", type=int, default=32, help="reviews a GPU and step")
    parser.add_argument("--peak", type=float, default=989, help="TFLOP/s of a GPU: H100, bf16")
    parser.add_argument("--utilisation", type=float, default=0.3, help="share of the peak")
    parser.add_argument("--link", type=float, default=360, help="GB/s each way within a machine")
    parser.add_argument("--network", type=float, default=40, help="GB/s a GPU between machines")
    parser.add_argument("--price", type=float, default=3.0, help="dollars for a GPU's hour")
    return parser


def rows(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the table."""
    return [row(name, model, approach, args) for name, (model, approach) in ROWS.items()]


def main() -> None:
    args = options().parse_args()
    note = (
        f"{args.reviews:,} reviews of {args.tokens} tokens, {args.epochs} epochs, {args.batch} "
        f"reviews a GPU and step; a GPU of {args.peak:g} TFLOP/s used at {args.utilisation:.0%}, "
        f"{args.link:g} GB/s within a machine of {NODE}, {args.network:g} GB/s between machines, "
        f"${args.price:g} an hour. Messages are not hidden behind computing."
    )
    remark = "Nothing is timed: the machine does not matter."
    publish("Cost of training, on paper", [Section("By GPUs", note, rows(args))], args, remark)


if __name__ == "__main__":
    main()
