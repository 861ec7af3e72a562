"""Compare dropout, attention with dropout, and training steps of a BERT with PyTorch's.

    python benchmarks/dropout.py --quick --json dropout.json

Both implementations run alternately in one process on the same inputs, so their ratio is reliable.
The BERT has the sizes of rubert-tiny2 (3 layers, width 312, 12 heads) and random weights. A step is
forward, backward and AdamW on 16 reviews of 256 tokens with dropout 0.1. Rows `without` are PyTorch
without dropout in attention: the difference to them is the cost of dropout in attention.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification

from kinopoisk_ft.ops.attention.op import attention
from kinopoisk_ft.ops.dropout.op import dropout
from kinopoisk_ft.training.acceleration.dropout import replace_dropout
from kinopoisk_ft.training.device import keep_freed_memory

BATCH, LENGTH, HEADS, WIDTH, LAYERS, INNER, P = 16, 256, 12, 312, 3, 600, 0.1
CPU = torch.device("cpu")
Way = Callable[[], object]


def elements(dtype: torch.dtype) -> dict[str, Way]:
    """Return dropout of one layer's attention probabilities, forward and backward."""
    x = torch.randn(BATCH, HEADS, LENGTH, LENGTH, dtype=dtype, requires_grad=True)
    grad = torch.randn_like(x)
    return {
        "torch": lambda: torch.autograd.grad(nn.functional.dropout(x, P), x, grad),
        "ours": lambda: torch.autograd.grad(dropout(x, P), x, grad),
    }


def layer(dtype: torch.dtype) -> dict[str, Way]:
    """Return one layer's attention, forward and backward; `without` has no dropout."""
    sequence = (BATCH, LENGTH, HEADS, WIDTH // HEADS)
    leaves = [torch.randn(sequence, dtype=dtype, requires_grad=True) for _ in range(3)]
    grad = torch.randn(sequence, dtype=dtype).transpose(1, 2)

    def run(p: float, backend: str) -> tuple[Tensor, ...]:
        q, k, v = (x.transpose(1, 2) for x in leaves)
        return torch.autograd.grad(attention(q, k, v, None, p, backend=backend), leaves, grad)

    return {
        "torch": lambda: run(P, "torch"),
        "ours": lambda: run(P, "numba"),
        "without": lambda: run(0.0, "torch"),
    }


def model(attention_dropout: float) -> BertForSequenceClassification:
    """Return a BERT with the sizes of rubert-tiny2 and random weights, in training mode."""
    config = BertConfig(
        vocab_size=30_000, hidden_size=WIDTH, num_hidden_layers=LAYERS,
        num_attention_heads=HEADS, intermediate_size=INNER, hidden_dropout_prob=P,
        attention_probs_dropout_prob=attention_dropout,
    )  # fmt: skip
    return BertForSequenceClassification(config).train()


def step(dtype: torch.dtype) -> dict[str, Way]:
    """Return a whole training step."""
    ids = torch.randint(5, 30_000, (BATCH, LENGTH))
    labels = torch.arange(BATCH) % 2
    networks = {p: model(p) for p in (P, 0.0)}
    optimizers = {p: torch.optim.AdamW(m.parameters(), lr=1e-5) for p, m in networks.items()}

    def run(p: float, place: Callable[[nn.Module], AbstractContextManager[None]]) -> None:
        network = networks[p]
        with place(network), torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            loss = network(input_ids=ids, labels=labels).loss
        loss.backward()
        optimizers[p].step()
        optimizers[p].zero_grad()

    return {
        "torch": lambda: run(P, lambda _: nullcontext()),
        "ours": lambda: run(P, lambda network: replace_dropout(network, CPU, "keep")),
        "without": lambda: run(0.0, lambda _: nullcontext()),
    }


def milliseconds(ways: dict[str, Way], turns: int) -> dict[str, float]:
    """Call all ways alternately, and return the median time of each."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(turns + 1):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            # The first turn compiles kernels and starts threads.
            if turn:
                times[name].append(time.perf_counter() - start)
    return {name: 1e3 * statistics.median(values) for name, values in times.items()}


def rows(dtypes: list[torch.dtype], turns: int) -> list[dict[str, float | str]]:
    """Time dropout, attention and a step in each precision."""
    found: list[dict[str, float | str]] = []
    for dtype in dtypes:
        for name, ways in (("dropout", elements), ("attention", layer), ("step", step)):
            took = milliseconds(ways(dtype), turns)
            found += [{"what": name, "dtype": str(dtype)[6:], "way": way, "ms": ms,
                       "times_ours": ms / took["ours"]} for way, ms in took.items()]  # fmt: skip
    return found


def table(found: list[dict[str, float | str]]) -> str:
    """Format the rows as text."""
    lines = [f"{'what':11}{'dtype':10}{'way':9}{'ms':>9}{'x ours':>8}"]
    lines += [
        f"{r['what']:11}{r['dtype']:10}{r['way']:9}{r['ms']:9.1f}{r['times_ours']:8.2f}"
        for r in found
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Time dropout on a CPU")
    parser.add_argument("--quick", action="store_true", help="5 turns, under a minute")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to FILE")
    args = parser.parse_args()
    torch.manual_seed(0)
    keep_freed_memory()
    found = rows([torch.float32, torch.bfloat16], 5 if args.quick else 25)
    print(table(found))
    if args.json:
        where = {
            "cpu": platform.processor() or platform.machine(),
            "threads": torch.get_num_threads(),
        }
        versions = {name: version(name) for name in ("torch", "numba", "transformers")}
        sizes = {"batch": BATCH, "length": LENGTH, "heads": HEADS, "width": WIDTH, "p": P}
        report = {**where, "versions": versions, **sizes, "rows": found}
        args.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
