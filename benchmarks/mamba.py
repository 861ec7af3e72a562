"""Time whole training steps of Mamba classifiers: forward, backward and AdamW, in float32.

    python benchmarks/mamba.py --json mamba.json --markdown mamba.md

A small model is timed in the implementations of this project, mambapy (if installed) and
transformers, alternately and with the same weights. A step of mamba-130m is compared with the speed
of matrix products on this machine.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from functools import cache, partial

import torch
from common import allocator
from common.installed import NOTE, compare
from common.networks import (
    BATCH,
    CPU,
    LABELS,
    SMALL,
    draw_batch,
    networks,
    parameters,
    training_step,
)
from common.report import Section, command_line, missing, publish
from common.scans import MAMBAPY, OURS, TRANSFORMERS
from common.timing import Job, alternate
from torch import nn
from transformers import MambaConfig

from kinopoisk_ft.models.mamba import MambaClassifier
from kinopoisk_ft.training.precision import Precision

# config.json of state-spaces/mamba-130m-hf
LARGE = {"vocab_size": 50280, "hidden_size": 768, "state_size": 16, "initializer_range": 0.1}
LARGE_LAYERS, LARGE_PARAMETERS = 24, 129_136_898
# Rows and columns of the matrices that measure the machine's speed; smaller ones are slower.
SQUARE = 4096


@cache
def small_models() -> dict[str, nn.Module]:
    """Return a small model in every implementation that is installed."""
    models = networks(SMALL)
    count = {parameters(model) for model in models.values()}
    if len(count) > 1:
        raise RuntimeError(f"the models differ in size: {count}")
    return models


@cache
def small_step(name: str, length: int) -> Job:
    """Return a training step that has run once; the name may end in a precision: `ours, bf16`."""
    name, _, kind = name.partition(", ")
    precision = Precision(kind or "fp32", CPU)
    step = training_step(small_models()[name], draw_batch(SMALL, length), precision)
    step()
    return step


def small_steps(plan: Mapping[int, Sequence[str]], rounds: int) -> Section:
    """Time a training step for each length of the plan and each implementation named for it."""
    models, auto, rows = small_models(), Precision("auto", CPU), []
    for length, names in plan.items():
        ways = [name for name in names if name in models]
        if auto.kind != "fp32":
            ways.append(f"{OURS}, {auto.kind}")
        found = compare(small_step, ways, length, rounds, turn=1.0)
        rows += [{"length": length, **row} for row in found]
    count = parameters(models[OURS])
    note = (
        f"Width {SMALL.hidden_size}, {SMALL.num_hidden_layers} layers, vocabulary "
        f"{SMALL.vocab_size}, {LABELS} labels: {count:,} parameters. All implementations have the "
        f"same weights and the same logits. Batch {BATCH}, float32; rounds: {rounds}. {NOTE} "
        f"The backward pass of {TRANSFORMERS} takes quadratic time, so it is timed at the short "
        f"length only. On this machine, `trainer.precision=auto` is {auto.kind} ({auto.reason})."
    )
    return Section("A training step of a small model", note + missing([MAMBAPY], models), rows)


def large_step(layers: int, length: int, rounds: int) -> Section:
    """Time a step of mamba-130m and a matrix product, alternately."""
    model = MambaClassifier(MambaConfig(**LARGE, num_hidden_layers=layers), LABELS)
    if layers == LARGE_LAYERS and parameters(model) != LARGE_PARAMETERS:
        raise RuntimeError(f"mamba-130m with {LABELS} labels has {LARGE_PARAMETERS:,} parameters")
    step = training_step(model, draw_batch(model.mamba_config, length))
    left, right = torch.randn(2, SQUARE, SQUARE)
    seconds = alternate({"step": step, "product": partial(torch.mm, left, right)}, rounds)
    rates = [2 * SQUARE**3 / x for x in seconds["product"]]
    work = product_flop(model, BATCH * length)
    took = statistics.median(seconds["step"])
    row = {
        "layers": layers, "parameters": f"{parameters(model):,}", "length": length,
        "seconds per step": took, "tokens per second": BATCH * length / took,
        "TFLOP in products": work / 1e12, "machine's GFLOP/s": statistics.median(rates) / 1e9,
        "share of it": statistics.median(
            work / x / rate for x, rate in zip(seconds["step"], rates, strict=True)
        ),
    }  # fmt: skip
    note = (
        f"Random weights, {LABELS} labels, batch {BATCH}, float32; rounds: {rounds}. "
        "`share of it`: the FLOPs of the linear layers in a step (forward and backward), divided "
        f"by the FLOPs that products of {SQUARE} x {SQUARE} matrices, timed between the steps, "
        "reach in the same time. The other time is the scan, the convolution, norms and AdamW."
    )
    whole = "mamba-130m" if layers == LARGE_LAYERS else f"mamba-130m cut to {layers} layers"
    return Section(f"A training step of {whole}", note, [row])


def product_flop(model: MambaClassifier, tokens: int) -> int:
    """Return the FLOPs of the blocks' linear layers, forward and backward (twice as many)."""
    linear = [m for m in model.backbone.modules() if isinstance(m, nn.Linear)]
    return 3 * 2 * tokens * sum(m.weight.numel() for m in linear)


def main() -> None:
    parser = command_line(__doc__)
    args = parser.parse_args()
    remark = allocator.keep()
    every = [OURS, MAMBAPY, TRANSFORMERS]
    if args.quick:
        sections = [small_steps({32: every, 128: every[:2]}, 1), large_step(2, 128, 1)]
    else:
        sections = [small_steps({128: every, 512: every[:2]}, 5), large_step(LARGE_LAYERS, 512, 5)]
    publish("Training steps of Mamba on a CPU", sections, args, remark)


if __name__ == "__main__":
    main()
