"""The work of a BERT's linear layers in training, and how fast this machine multiplies matrices."""

from __future__ import annotations

import time

import torch
from transformers import BertConfig

from common.sides import Experiment

SQUARE = 4096  # rows of the matrices of the yardstick; smaller ones come out slower


def matrix_rate(dtype: torch.dtype) -> float:
    """Return the operations a second of products of large matrices, the best of several."""
    left, right = torch.randn(2, SQUARE, SQUARE).to(dtype)
    taken = []
    for _ in range(4):
        start = time.perf_counter()
        torch.mm(left, right)
        taken.append(time.perf_counter() - start)
    return 2 * SQUARE**3 / min(taken)


def flop_per_token(config: BertConfig, work: Experiment) -> int:
    """Return the operations of the linear layers for a token of a training step.

    Forward, the gradient of the inputs, and that of the weights cost the same; LoRA needs no
    gradient of the frozen weights, and from cached states only the upper layers run. In the last
    layer all tokens give keys and values; the rest is for the first token, and not counted; the
    head alone counts as nothing.
    """
    width = config.hidden_size
    weights = 4 * width**2 + 2 * width * config.intermediate_size
    layers = config.num_hidden_layers - (work.layers if work.approach == "frozen" else 0)
    if not layers:
        return 0
    passes = 2 if work.approach == "lora" else 3
    return 2 * passes * ((layers - 1) * weights + 2 * width**2)
