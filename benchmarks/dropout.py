"""Compare dropout, attention with dropout, and training steps of a BERT with PyTorch's.

    python benchmarks/dropout.py --json dropout.json --markdown dropout.md

Both implementations run alternately in one process on the same inputs, so their ratio is reliable.
The BERT has the sizes of rubert-tiny2 (3 layers, width 312, 12 heads) and random weights. A step is
forward, backward and AdamW on 16 reviews of 256 tokens with dropout 0.1. Rows `without` have no
dropout in attention: attention by PyTorch, and in a step our dropout everywhere else. The
difference to `ours` is the cost of dropout in attention.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from common import allocator
from common.report import Section, command_line, publish
from common.timing import Job, alternate
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification

from kinopoisk_ft.ops.attention.op import attention
from kinopoisk_ft.ops.dropout.op import dropout
from kinopoisk_ft.training.acceleration.dropout import replace_dropout

BATCH, LENGTH, HEADS, WIDTH, LAYERS, INNER, P = 16, 256, 12, 312, 3, 600, 0.1
CPU = torch.device("cpu")


def elements(dtype: torch.dtype) -> dict[str, Job]:
    """Return dropout of one layer's attention probabilities, forward and backward."""
    x = torch.randn(BATCH, HEADS, LENGTH, LENGTH, dtype=dtype, requires_grad=True)
    grad = torch.randn_like(x)
    return {
        "torch": lambda: torch.autograd.grad(nn.functional.dropout(x, P), x, grad),
        "ours": lambda: torch.autograd.grad(dropout(x, P), x, grad),
    }


def layer(dtype: torch.dtype) -> dict[str, Job]:
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


def model() -> BertForSequenceClassification:
    """Return a BERT with the sizes of rubert-tiny2 and random weights, in training mode."""
    config = BertConfig(
        vocab_size=30_000, hidden_size=WIDTH, num_hidden_layers=LAYERS,
        num_attention_heads=HEADS, intermediate_size=INNER, hidden_dropout_prob=P,
        attention_probs_dropout_prob=P,
    )  # fmt: skip
    return BertForSequenceClassification(config).train()


def step(dtype: torch.dtype) -> dict[str, Job]:
    """Return a whole training step."""
    ids = torch.randint(5, 30_000, (BATCH, LENGTH))
    labels = torch.arange(BATCH) % 2
    network = model()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-5)

    def run(replace: Callable[[], AbstractContextManager[None]]) -> None:
        with replace(), torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            loss = network(input_ids=ids, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return {
        "torch": lambda: run(nullcontext),
        "ours": lambda: run(lambda: replace_dropout(network, CPU, "keep")),
        "without": lambda: run(lambda: replace_dropout(network, CPU, "off")),
    }


def rows(dtypes: list[torch.dtype], turns: int) -> list[dict[str, Any]]:
    """Time dropout, attention and a step in each precision."""
    found = []
    for dtype in dtypes:
        for name, ways in (("dropout", elements), ("attention", layer), ("step", step)):
            seconds = alternate(ways(dtype), turns, turn=0.0)
            took = {way: 1e3 * statistics.median(values) for way, values in seconds.items()}
            found += [{"what": name, "dtype": str(dtype)[6:], "way": way, "ms": ms,
                       "times ours": ms / took["ours"]} for way, ms in took.items()]  # fmt: skip
    return found


def main() -> None:
    args = command_line(__doc__).parse_args()
    torch.manual_seed(0)
    remark = allocator.keep()
    turns = 5 if args.quick else 25
    note = (
        f"Forward and backward, medians of {turns} turns; batch {BATCH}, length {LENGTH}, {HEADS} "
        f"heads, width {WIDTH}, dropout {P}. `dropout`: of the attention probabilities of a layer. "
        "`without`: without dropout in attention; in a step, other dropout is ours."
    )
    found = rows([torch.float32, torch.bfloat16], turns)
    publish("Dropout on a CPU", [Section("Times", note, found)], args, remark)


if __name__ == "__main__":
    main()
