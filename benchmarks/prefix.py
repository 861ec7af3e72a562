"""Compare a training step that starts from the prefix cache with one through the whole model.

    python benchmarks/prefix.py --json prefix.json --markdown prefix.md

Either the first 10 layers are frozen, or all layers, so that only the head is trained. The model is
an encoder from a folder, or a BERT with random weights (12 layers, width 384). The steps alternate
in one process, so their ratio is reliable. A step includes reading its batch, also from the cache.
"""

from __future__ import annotations

import argparse
import copy
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import allocator
from common.report import Section, command_line, publish
from torch import nn
from transformers import BertConfig, BertModel

from kinopoisk_ft.adapters.plain import Freeze, Head
from kinopoisk_ft.models.encoder import Encoder
from kinopoisk_ft.models.heads import build_pooled_network
from kinopoisk_ft.models.network import Network
from kinopoisk_ft.prefix_cache.cache import PrefixCache
from kinopoisk_ft.training.batching import Examples, group_by_length
from kinopoisk_ft.training.device import to_device
from kinopoisk_ft.training.objective import Classification
from kinopoisk_ft.training.precision import Precision

BATCH, PAD = 16, 0
ADAPTERS = {"freeze 10": Freeze(layers=10, lr=5e-5), "head": Head(lr=1e-2)}
Step = Callable[[], None]


def network(folder: Path | None) -> Network:
    """Return an encoder with a classification head."""
    if folder is None:
        config = BertConfig(
            vocab_size=20_000, hidden_size=384, num_attention_heads=12, intermediate_size=1536
        )
        encoder = BertModel(config, add_pooling_layer=False)
        return build_pooled_network(encoder, 2, "mean")
    recipe = Encoder(
        name=str(folder), revision=None, tokenizer=str(folder), pooling="auto", dropout=None,
        lr=5e-5, head_lr=None, targets={},
    )  # fmt: skip
    return recipe.build(("Bad", "Good"), None)


def examples(count: int, longest: int) -> Examples:
    """Return reviews of random tokens, with lengths from `longest` / 8 to `longest`."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(longest // 8, longest + 1, count)
    ids = [rng.integers(5, 5000, length).tolist() for length in lengths]
    return Examples(ids, rng.integers(0, 2, count))


def stepper(
    module: nn.Module, objective: Classification, train: Examples, precision: Precision
) -> Step:
    """Return a function that runs a training step on the next batch."""
    optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=1e-5)
    rng = np.random.default_rng(0)
    batches = group_by_length(train.lengths, BATCH, 0, 0)
    turn = iter(range(10**9))

    def step() -> None:
        rows = batches[next(turn) % len(batches)]
        module.train()
        batch = to_device(objective.collate(train, rows, rng), precision.device)
        with precision.autocast():
            loss, _ = objective.loss_sum(module, batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def cached(
    kind: str, made: Network, module: nn.Module, train: Examples, precision: Precision
) -> tuple[Step, dict[str, float]]:
    """Run the frozen part once; return a step from its states, and the seconds and size of it."""
    start = time.perf_counter()
    cache = PrefixCache(kind, PAD, precision, 2 * BATCH)
    found = cache.apply(made, module, {"train": train})
    seconds = time.perf_counter() - start
    files = Path(os.environ["KINOPOISK_FT_CACHE"]).rglob("*.npy")
    size = max(files, key=lambda f: f.stat().st_mtime_ns).stat().st_size
    step = stepper(module, found.make_objective(), found.parts["train"], precision)
    return step, {"pass s": seconds, "MiB": size / 2**20}


def rows(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Time a step of every adapter with the whole model and with each cache."""
    precision = Precision(args.precision, torch.device("cpu"))
    train, base = examples(args.reviews, args.max_length), network(args.model)
    found = []
    for name, adapter in ADAPTERS.items():
        made = copy.deepcopy(base)
        module = adapter.apply(made).module
        steps = {"whole": stepper(module, Classification(PAD), train, precision)}
        costs: dict[str, dict[str, Any]] = {"whole": {"pass s": None, "MiB": None}}
        for kind in ("fp32", "fp16"):
            steps[kind], costs[kind] = cached(kind, made, module, train, precision)
        took = in_turns(steps, args.seconds)
        found += [{"adapter": name, "way": way, "step ms": ms,
                   "times faster": took["whole"] / ms, **costs[way]}
                  for way, ms in took.items()]  # fmt: skip
    return found


def in_turns(steps: dict[str, Step], seconds: float) -> dict[str, float]:
    """Run the steps alternately after a warm-up; return the median milliseconds of each."""
    times: dict[str, list[float]] = {way: [] for way in steps}
    for step in steps.values():
        step()
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for way, step in steps.items():
            start = time.perf_counter()
            step()
            times[way].append(time.perf_counter() - start)
    return {way: 1e3 * statistics.median(taken) for way, taken in times.items()}


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--model", type=Path, metavar="FOLDER", help="a Hugging Face encoder")
    parser.add_argument("--reviews", type=int, default=256)
    parser.add_argument("--max-length", type=int, default=256, help="tokens (default: 256)")
    parser.add_argument("--precision", default="fp32", choices=("auto", "fp32", "bf16"))
    parser.add_argument(
        "--seconds", type=float, default=20.0, help="seconds of timing for each adapter"
    )
    args = parser.parse_args()
    if args.quick:
        args.reviews, args.max_length, args.seconds = 64, 64, 4.0
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["KINOPOISK_FT_CACHE"] = folder
        found = rows(args)
    note = (
        f"Mean pooling, {args.reviews} reviews of {args.max_length // 8} to {args.max_length} "
        f"random tokens, batches of {BATCH}, {args.precision}. `pass s`: the seconds to run the "
        "frozen layers once and write their states, which take `MiB`."
    )
    publish("Steps that start from the prefix cache", [Section("Times", note, found)], args,
            allocator.DEFAULT)  # fmt: skip


if __name__ == "__main__":
    main()
