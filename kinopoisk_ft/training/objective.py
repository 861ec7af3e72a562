"""What a network is trained for: a class, a masked token or the next token.

An objective makes batches, gives the loss as a sum with its count (so that accumulation can divide
by the count of the whole effective batch), and scores an evaluation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from sklearn.utils.class_weight import compute_class_weight
from torch import Tensor, nn

from kinopoisk_ft.statistics.metrics import classification_scores
from kinopoisk_ft.training.batching import Examples, pad
from kinopoisk_ft.training.losses import IGNORED, Loss, cross_entropy

Batch = dict[str, Tensor]


class Objective(Protocol):
    """The verbs that the loop and the evaluation call."""

    def collate(self, examples: Examples, rows: np.ndarray, rng: np.random.Generator) -> Batch:
        """Return the padded batch of these rows."""
        ...

    def count(self, batch: Batch) -> float:
        """Return the number of labels in a batch, or their weight: what the loss is divided by."""
        ...

    def loss_sum(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the summed loss, a scalar, and what `scores` needs of this batch."""
        ...

    def scores(self, outputs: Tensor, labels: np.ndarray) -> dict[str, float]:
        """Return metrics by name from what `loss_sum` kept, in the order of the labels."""
        ...


def balanced_weights(labels: np.ndarray, num_classes: int) -> Tensor:
    """Return weights (classes,), fp32, under which all classes of these labels weigh the same."""
    weights = compute_class_weight("balanced", classes=np.arange(num_classes), y=labels)
    return torch.as_tensor(weights, dtype=torch.float32)


class Classification:
    """Train for classes; keep logits (batch, classes).

    Args:
        weights: of the classes, (classes,), for the loss; None gives all the same weight.
        loss: from logits, labels and weights to the sum and the count of the loss.
    """

    def __init__(
        self,
        pad_id: int,
        weights: Tensor | None = None,
        loss: Loss = cross_entropy,
    ) -> None:
        self.pad_id, self.weights, self.loss = pad_id, weights, loss

    def collate(self, examples: Examples, rows: np.ndarray, rng: np.random.Generator) -> Batch:
        """Return input_ids, attention_mask (batch, length) and labels (batch,)."""
        batch = pad([examples.input_ids[i] for i in rows], self.pad_id)
        if examples.labels is not None:
            batch["labels"] = torch.as_tensor(examples.labels[rows], dtype=torch.int64)
        return batch

    def count(self, batch: Batch) -> float:
        """Return what the loss of this batch is divided by: its labels, or their weights.

        Training needs it before the first forward pass, so the loss is asked with zero logits.
        """
        labels = batch["labels"]
        weights = None if self.weights is None else self.weights.to(labels.device)
        classes = int(labels.max()) + 1 if weights is None else len(weights)
        return float(
            self.loss(torch.zeros(len(labels), classes, device=labels.device), labels, weights)[1]
        )

    def loss_sum(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the summed loss and the logits."""
        logits = self.logits(model, batch).float()
        weights = None if self.weights is None else self.weights.to(logits.device)
        return self.loss(logits, batch["labels"], weights)[0], logits.detach()

    def logits(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the model's logits (batch, classes)."""
        inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
        logits: Tensor = model(**inputs).logits
        return logits

    def scores(self, outputs: Tensor, labels: np.ndarray) -> dict[str, float]:
        """Return every metric that is counted from predicted classes."""
        return classification_scores(outputs.numpy(), labels)


class LanguageModel:
    """Train for the next token, as Mamba needs; the loss counts real tokens only."""

    def __init__(self, pad_id: int, loss: Loss = cross_entropy) -> None:
        self.pad_id, self.loss = pad_id, loss

    def collate(self, examples: Examples, rows: np.ndarray, rng: np.random.Generator) -> Batch:
        """Return input_ids, attention_mask and labels, (batch, length): the token that follows."""
        batch = pad([examples.input_ids[i] for i in rows], self.pad_id)
        labels = torch.full_like(batch["input_ids"], IGNORED)
        labels[:, :-1] = batch["input_ids"][:, 1:]
        labels[:, :-1].masked_fill_(batch["attention_mask"][:, 1:] == 0, IGNORED)
        return {**batch, "labels": labels}

    def count(self, batch: Batch) -> float:
        """Return the number of tokens to be guessed."""
        return int((batch["labels"] != IGNORED).sum())

    def loss_sum(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the summed loss over predicted tokens, twice: nothing else is kept."""
        inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
        logits = model(**inputs).logits.float()
        loss, _ = self.loss(logits.flatten(0, 1), batch["labels"].flatten(), None)
        return loss, loss.detach().reshape(1)

    def scores(self, outputs: Tensor, labels: np.ndarray) -> dict[str, float]:
        """Return nothing beyond the loss."""
        return {}


class MaskedLanguageModel(LanguageModel):
    """Train for masked tokens: 80% masked, 10% random, 10% unchanged (Devlin et al., 2019).

    Args:
        share: of tokens that are predicted.
    """

    def __init__(
        self,
        pad_id: int,
        mask_id: int,
        vocab_size: int,
        special_ids: Sequence[int],
        share: float,
        loss: Loss = cross_entropy,
    ) -> None:
        super().__init__(pad_id, loss)
        self.mask_id, self.vocab_size, self.share = mask_id, vocab_size, share
        self.special_ids = np.asarray(sorted(special_ids), dtype=np.int64)

    def collate(self, examples: Examples, rows: np.ndarray, rng: np.random.Generator) -> Batch:
        """Return masked input_ids, attention_mask, and labels: the chosen tokens, else ignored."""
        batch = pad([examples.input_ids[i] for i in rows], self.pad_id)
        ids = batch["input_ids"].numpy()
        free = ~np.isin(ids, self.special_ids) & (batch["attention_mask"].numpy() == 1)
        chosen = free & (rng.random(ids.shape) < self.share)
        draw = rng.random(ids.shape)
        masked = np.where(chosen & (draw < 0.8), self.mask_id, ids)
        random_ids = rng.integers(0, self.vocab_size, ids.shape)
        masked = np.where(chosen & (draw >= 0.9), random_ids, masked)
        labels = np.where(chosen, ids, IGNORED)
        return {
            "input_ids": torch.from_numpy(masked),
            "attention_mask": batch["attention_mask"],
            "labels": torch.from_numpy(labels),
        }
