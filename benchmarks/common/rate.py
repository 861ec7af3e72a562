"""Count the FLOPs of a BERT's linear layers, and measure this machine's matrix products."""

from __future__ import annotations

import time

import torch
from transformers import BertConfig

from common.sides import Experiment

# Rows and columns of the matrices; smaller ones reach fewer FLOP/s.
SQUARE = 4096


def matrix_rate(dtype: torch.dtype) -> float:
    """Return the FLOP/s of products of large matrices, the fastest of four."""
    left, right = torch.randn(2, SQUARE, SQUARE).to(dtype)
    taken = []
    for _ in range(4):
        start = time.perf_counter()
        torch.mm(left, right)
        taken.append(time.perf_counter() - start)
    return 2 * SQUARE**3 / min(taken)


def flop_per_token(config: BertConfig, work: Experiment) -> int:
    """Return the FLOPs of the linear layers in a training step, per token.

    The forward pass, the gradients of inputs and those of weights cost the same. LoRA needs no
    gradients of the frozen weights, and with a prefix cache only the upper layers run. The last
    layer computes keys and values of all tokens, but the rest for the first token only, which is
    not counted. The head is not counted, either.
    """
    width = config.hidden_size
    weights = 4 * width**2 + 2 * width * config.intermediate_size
    layers = config.num_hidden_layers - (work.layers if work.approach == "frozen" else 0)
    if not layers:
        return 0
    passes = 2 if work.approach == "lora" else 3
    return 2 * passes * ((layers - 1) * weights + 2 * width**2)
