"""One pass over examples without gradients: scores and raw outputs in the order of the examples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from kinopoisk_ft.training.batching import Examples, batch_by_length, prefetch
from kinopoisk_ft.training.device import to_device
from kinopoisk_ft.training.distributed.processes import (
    all_reduce_sum,
    rank,
    shard_batch,
    world_size,
)
from kinopoisk_ft.training.memory import halve_on_out_of_memory
from kinopoisk_ft.training.objective import Objective
from kinopoisk_ft.training.precision import Precision


@dataclass(frozen=True)
class Evaluation:
    """Scores by metric, and what the objective kept (for classes: logits (N, classes), fp32)."""

    scores: dict[str, float]
    outputs: Tensor
    batch_size: int  # as asked for, or what memory was enough for


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    examples: Examples,
    objective: Objective,
    precision: Precision,
    batch_size: int,
    check: Callable[[], None] = lambda: None,
) -> Evaluation:
    """Evaluate every example once, longest first; leaves the model in evaluation mode.

    Batches are halved when memory runs out: the longest reviews come first, and tell it early. Of
    several processes each reads its share of every batch, and all return the same. `check` is
    called after each batch.
    """
    model.eval()

    def attempt(rows: int) -> tuple[dict[str, float], Tensor]:
        return _evaluate(model, examples, objective, precision, rows, check)

    (scores, outputs), rows = halve_on_out_of_memory(
        attempt, batch_size, precision.device, "evaluation"
    )
    return Evaluation(scores, outputs, rows)


def _evaluate(
    model: nn.Module,
    examples: Examples,
    objective: Objective,
    precision: Precision,
    batch_size: int,
    check: Callable[[], None],
) -> tuple[dict[str, float], Tensor]:
    """Return scores, and outputs in the order of the examples."""
    # The same masks at each evaluation, so that the losses of two epochs can be compared.
    rng = np.random.default_rng(0)
    batches = batch_by_length(examples.lengths, batch_size)
    losses, kept, count = [], [], 0.0
    with prefetch(objective.collate(examples, rows, rng) for rows in batches) as collated:
        for batch in collated:
            count += objective.count(batch)
            own, counts = shard_batch(batch)
            with precision.autocast():
                loss, output = objective.loss_sum(model, to_device(own, precision.device))
            losses.append(loss if counts else torch.zeros_like(loss))
            kept.append(output if counts else output[:0])
            check()
    total = all_reduce_sum(torch.stack(losses).cpu().double().sum()).item()
    scores = {"loss": total / (count or 1)}
    outputs = torch.cat(kept).cpu()
    if examples.labels is not None:
        mine = [rows[rank() :: world_size()] for rows in batches]
        outputs = all_reduce_sum(_in_order(outputs, mine, len(examples)))
        scores |= objective.scores(outputs, examples.labels)
    return scores, outputs


@torch.inference_mode()
def predict(
    model: nn.Module,
    examples: Examples,
    objective: Objective,
    precision: Precision,
    batch_size: int,
) -> Tensor:
    """Return logits (N, classes), fp32 on the CPU, of examples without labels.

    Batches are halved when memory runs out.
    """
    model.eval()

    def attempt(rows: int) -> Tensor:
        return _predict(model, examples, objective, precision, rows)

    return halve_on_out_of_memory(attempt, batch_size, precision.device, "prediction")[0]


def _predict(
    model: nn.Module,
    examples: Examples,
    objective: Objective,
    precision: Precision,
    batch_size: int,
) -> Tensor:
    rng = np.random.default_rng(0)
    batches = batch_by_length(examples.lengths, batch_size)
    kept = []
    with prefetch(objective.collate(examples, rows, rng) for rows in batches) as collated:
        for batch in collated:
            with precision.autocast():
                logits = model(**to_device(batch, precision.device)).logits
            kept.append(logits.float().cpu())
    return _in_order(torch.cat(kept), batches, len(examples))


def _in_order(outputs: Tensor, batches: list[np.ndarray], count: int) -> Tensor:
    """Undo the sorting: row i of the result belongs to example i, zero where it is not here."""
    restored = outputs.new_zeros(count, *outputs.shape[1:])
    restored[torch.from_numpy(np.concatenate(batches))] = outputs
    return restored
