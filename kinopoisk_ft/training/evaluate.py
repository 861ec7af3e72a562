"""Evaluate a model, or predict logits for examples without labels."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from kinopoisk_ft.errors import UserError
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
    """The result of an evaluation.

    Args:
        scores: the values of the metrics, by name.
        outputs: the outputs of the objective. For classification, these are logits (N, classes),
            fp32, in the order of the examples.
        batch_size: the requested batch size, or a smaller one if memory ran out.
    """

    scores: dict[str, float]
    outputs: Tensor
    batch_size: int


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    examples: Examples,
    objective: Objective,
    precision: Precision,
    batch_size: int,
    check: Callable[[int], None] = lambda rows: None,
) -> Evaluation:
    """Evaluate a model on all examples.

    When memory runs out, the batch size is halved. The longest examples come first, so that this
    happens early. All processes return the same scores. The model stays in evaluation mode.

    Args:
        check: called after each batch with the number of its examples; can raise an exception to
            stop the evaluation.

    Raises:
        UserError: the loss is not finite.
    """
    model.eval()
    (scores, outputs), rows = halve_on_out_of_memory(
        lambda rows: _evaluate(model, examples, objective, precision, rows, check),
        batch_size,
        precision.device,
        "evaluation",
    )
    return Evaluation(scores, outputs, rows)


def _evaluate(
    model: nn.Module,
    examples: Examples,
    objective: Objective,
    precision: Precision,
    batch_size: int,
    check: Callable[[int], None],
) -> tuple[dict[str, float], Tensor]:
    # Mask the same tokens in each evaluation, so that the losses of two epochs are comparable.
    rng = np.random.default_rng(0)
    batches = batch_by_length(examples, batch_size)
    losses, collected, count = [], [], 0.0
    with prefetch(objective.collate(examples, rows, rng) for rows in batches) as collated:
        for rows, batch in zip(batches, collated, strict=False):
            count += objective.count(batch)
            shard, counts = shard_batch(batch)
            with precision.autocast():
                loss, output = objective.loss_sum(model, to_device(shard, precision.device))
            # Losses stay on the device, because reading each one would wait for it.
            losses.append(loss if counts else torch.zeros_like(loss))
            collected.append(output if counts else output[:0])
            check(len(rows))
    # Losses are added in float64, which MPS does not support, so they are moved to the CPU first.
    total = all_reduce_sum(torch.stack(losses).cpu().double().sum()).item()
    # The metrics would count a review with such outputs as one of the first class.
    if not math.isfinite(total):
        raise UserError(
            f"the loss of an evaluation is {total} in {precision.kind}, so some outputs of the "
            "model are not finite",
            where="trainer.precision",
            fix="use trainer.precision=fp32 or, if the run has used it, a lower trainer.lr; start "
            "over with resume=never",
        )
    # The count is 0 if a language model has no token to predict.
    scores = {"loss": total / (count or 1)}
    outputs = torch.cat(collected).cpu()
    if examples.labels is not None:
        # The rows that `shard_batch` selected for this rank.
        shards = [rows[rank() :: world_size()] for rows in batches]
        # The rows of other ranks are zero here, so the sum over all ranks contains each row once.
        outputs = all_reduce_sum(restore_order(outputs, shards, len(examples)))
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
    """Return the logits (N, classes) of examples without labels, fp32, on the CPU."""
    model.eval()
    logits, _ = halve_on_out_of_memory(
        lambda rows: _predict(model, examples, objective, precision, rows),
        batch_size,
        precision.device,
        "prediction",
    )
    return logits


def _predict(
    model: nn.Module,
    examples: Examples,
    objective: Objective,
    precision: Precision,
    batch_size: int,
) -> Tensor:
    # `collate` requires a generator, but draws nothing for a classifier.
    rng = np.random.default_rng(0)
    batches = batch_by_length(examples, batch_size)
    logits = []
    with prefetch(objective.collate(examples, rows, rng) for rows in batches) as collated:
        for batch in collated:
            with precision.autocast():
                output = model(**to_device(batch, precision.device)).logits
            logits.append(output.float().cpu())
    return restore_order(torch.cat(logits), batches, len(examples))


def restore_order(outputs: Tensor, batches: list[np.ndarray], count: int) -> Tensor:
    """Sort outputs by row index.

    Args:
        outputs: the outputs of all batches, in the order of the batches.
        batches: the row indices of each batch.
        count: number of rows in the result.

    Returns:
        (count, ...), with zeros in rows that are in no batch.
    """
    restored = outputs.new_zeros(count, *outputs.shape[1:])
    restored[torch.from_numpy(np.concatenate(batches))] = outputs
    return restored
