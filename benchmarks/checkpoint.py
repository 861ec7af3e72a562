"""Measure how long a checkpoint takes, and which share of a run's time that is by default.

    python benchmarks/checkpoint.py --json checkpoint.json --markdown checkpoint.md

Each checkpoint has the contents of a run's: trained weights, optimizer state, states of the random
generators, and digests. Each file is forced to disk.
"""

from __future__ import annotations

import logging
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from common import allocator
from common.report import Section, command_line, publish
from common.shapes import BASE, SMALL, TINY2
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import BertConfig, BertForSequenceClassification

from kinopoisk_ft.training.budget import Budget, Meter
from kinopoisk_ft.training.checkpoint.best import BestWeights
from kinopoisk_ft.training.checkpoint.contents import join_tensors
from kinopoisk_ft.training.checkpoint.folder import Checkpoint
from kinopoisk_ft.training.checkpoint.manager import MIN_RATIO, SECONDS, CheckpointManager
from kinopoisk_ft.training.clock import Clock
from kinopoisk_ft.training.objective import Classification
from kinopoisk_ft.training.precision import Precision
from kinopoisk_ft.training.schedule import constant
from kinopoisk_ft.training.state import State

BATCH, LENGTH, VOCABULARY = 8, 64, 30_000
SHAPES = {"as rubert-tiny2": TINY2, "as e5-small-ru": SMALL, "as bert-base": BASE}


class Silent:
    """A recorder that records nothing."""

    def flush(self) -> None:
        """Do nothing, because nothing is buffered."""


def prepare(model: nn.Module) -> State:
    """Return a training state with a new AdamW optimizer."""
    precision = Precision("fp32", torch.device("cpu"))
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5, fused=True)
    meter = Meter(Budget("steps", 100), Clock(), 100)
    schedule = LambdaLR(optimizer, lambda step: constant(step, warmup=0, total=meter.total))
    return State(
        model, model, Classification(0), precision, optimizer, schedule, meter, 100, BATCH, BATCH
    )


def step(state: State) -> None:
    """Run a training step: forward, backward, update."""
    ids = torch.randint(5, VOCABULARY, (BATCH, LENGTH))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    loss = state.objective.loss_sum(state.model, {**batch, "labels": torch.arange(BATCH) % 2})[0]
    state.precision.backward(loss / BATCH)
    state.precision.step(state.optimizer, state.model.parameters(), 1.0, loss.detach())
    state.step += 1


def seconds(job: Any) -> float:
    start = time.perf_counter()
    job()
    return time.perf_counter() - start


def restore(state: State, found: Checkpoint) -> None:
    state.load_state_dict(join_tensors(found.plain, found.load_tensors())["state"])


def measure(shape: dict[str, int], layers: int, rounds: int) -> dict[str, Any]:
    """Return the measurements of one model whose lower `layers` and embeddings are frozen.

    With `layers` 0, all weights are trained.
    """
    torch.manual_seed(0)
    model = BertForSequenceClassification(BertConfig(vocab_size=VOCABULARY, **shape)).train()
    for part in [model.bert.embeddings, *model.bert.encoder.layer][: layers + 1 if layers else 0]:
        part.requires_grad_(False)
    state = prepare(model)
    steps, saves = [], []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        best = BestWeights(folder)
        manager = CheckpointManager(folder, state, best, Clock(), Silent(), 1, {})
        for number in range(rounds + 1):
            steps.append(seconds(lambda: step(state)))
            saves.append(seconds(manager.save))
            # The first round compiles kernels and computes the digest of the frozen weights.
            if not number:
                first, steps, saves = saves[0], [], []
        found = manager.checkpoints.newest()
        assert found is not None
        written = sum(f.stat().st_size for f in found.folder.iterdir())
        load = seconds(lambda: restore(state, found))
    one = statistics.median(saves)
    return {
        "MiB": written / 2**20, "step s": statistics.median(steps), "first checkpoint s": first,
        "checkpoint s": one, "max": max(saves), "restore s": load,
        "share by default %": 100 * one / (one + max(SECONDS, MIN_RATIO * one)),
    }  # fmt: skip


def main() -> None:
    args = command_line(__doc__).parse_args()
    logging.basicConfig(level=logging.WARNING)
    rows = []
    for name, shape in list(SHAPES.items())[: 1 if args.quick else None]:
        depth = shape["num_hidden_layers"]
        for what, layers in (("all", 0), ("two thirds of the layers frozen", 2 * depth // 3)):
            figures = measure(shape, layers, rounds=2 if args.quick else 5)
            rows.append({"model": name, "trained": what, **figures})
    note = (
        f"BERT in fp32 with AdamW, batch {BATCH}, length {LENGTH}. By default, the next checkpoint "
        f"is written after {SECONDS:.0f} s, or after {MIN_RATIO} times the duration of the last "
        "one if that is longer. The first checkpoint also computes a digest of the frozen weights."
    )
    publish("Checkpoints", [Section("One checkpoint", note, rows)], args, allocator.DEFAULT)


if __name__ == "__main__":
    main()
