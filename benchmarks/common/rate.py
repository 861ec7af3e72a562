"""Count the FLOPs of a BERT's linear layers, and measure this machine's matrix products."""

from __future__ import annotations

import re
import time

import torch
from transformers import BertConfig

from common.sides import Experiment
from kinopoisk_ft.training.precision import synchronize

CPU = torch.device("cpu")
# Rows and columns of the matrices; smaller ones reach fewer FLOP/s.
SQUARE = 4096
# Peak rates of dense bf16 or fp16 products with fp32 sums, in TFLOP/s, by the GPU's name without
# brand and memory. Sources: NVIDIA's data sheets; for GeForce, its whitepapers of Ampere and Ada.
PEAK_TFLOPS = {
    "H100 HBM3": 989, "H100 PCIe": 756, "H200": 989, "A100 SXM4": 312, "A100 PCIE": 312,
    "A100 PCIe": 312, "L40S": 362, "L4": 121, "V100 SXM2": 125, "T4": 65, "RTX 3090": 71,
    "RTX 4090": 165,
}  # fmt: skip
BRAND_OR_MEMORY = re.compile(r"NVIDIA|Tesla|GeForce|\d+GB")


def matrix_rate(dtype: torch.dtype, device: torch.device = CPU, square: int = SQUARE) -> float:
    """Return the FLOP/s of products of large matrices, the fastest of four."""
    left, right = torch.randn(2, square, square, device=device).to(dtype)
    taken = []
    for _ in range(4):
        synchronize(device)
        start = time.perf_counter()
        torch.mm(left, right)
        synchronize(device)
        taken.append(time.perf_counter() - start)
    return 2 * square**3 / min(taken)


def peak_rate(name: str) -> float | None:
    """Return the FLOP/s in PEAK_TFLOPS of a GPU, given its name; None if it is not listed."""
    # A name with another word, such as `Ti`, `NVL` or `Laptop GPU`, is a card with another rate.
    words = [x for x in name.replace("-", " ").split() if not BRAND_OR_MEMORY.fullmatch(x)]
    tflops = PEAK_TFLOPS.get(" ".join(words))
    return None if tflops is None else tflops * 1e12


def model_flop(config: BertConfig, passes: int, tokens: int, squares: int) -> float:
    """Return the FLOPs of training a BERT, for the model FLOPs utilisation.

    In each pass, a token costs 2 FLOPs for each weight of the linear layers, and a pair of tokens
    costs 4 for each dimension (Chowdhery et al., 2022, appendix B).

    Args:
        passes: 3 (forward, gradients of inputs, gradients of weights), or 2 for LoRA.
        tokens: sum of the lengths of the reviews.
        squares: sum of the squared lengths.
    """
    width = config.hidden_size
    weights = 4 * width**2 + 2 * width * config.intermediate_size
    return passes * config.num_hidden_layers * (2 * weights * tokens + 4 * width * squares)


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
