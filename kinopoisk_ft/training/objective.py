"""Define training objectives for classification and language modelling.

An objective computes the sum of the losses in a batch. The training loop adds these sums over
several batches, and divides the total by the sum of the values that `count` returns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from sklearn.utils.class_weight import compute_class_weight
from torch import Tensor, nn

from kinopoisk_ft.statistics.metrics import classification_scores
from kinopoisk_ft.training.batching import Examples
from kinopoisk_ft.training.losses import IGNORED, Loss, cross_entropy

Batch = dict[str, Tensor]


class Objective(Protocol):
    """The interface of all objectives."""

    def collate(self, examples: Examples, rows: np.ndarray, rng: np.random.Generator) -> Batch:
        """Build a padded batch from the examples with the row indices `rows`."""
        ...

    def count(self, batch: Batch) -> float:
        """Return the divisor that converts a summed loss to a mean."""
        ...

    def loss_sum(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the summed loss of a batch as a scalar, and the outputs for `scores`."""
        ...

    def scores(self, outputs: Tensor, labels: np.ndarray) -> dict[str, float]:
        """Return metrics by name; outputs and labels are in the same order."""
        ...


def compute_balanced_weights(labels: np.ndarray, num_classes: int) -> Tensor:
    """Return class weights (classes,), fp32, that give all classes the same total weight."""
    # N / (classes * reviews of the class), as in King and Zeng (2001).
    weights = compute_class_weight("balanced", classes=np.arange(num_classes), y=labels)
    return torch.as_tensor(weights, dtype=torch.float32)


class Classification:
    """The objective of predicting the class of a review.

    Args:
        weights: class weights of the loss, (classes,). If None, all classes have the same weight.
        loss: a function like those in `kinopoisk_ft.training.losses`.
    """

    def __init__(
        self,
        pad_id: int,
        weights: Tensor | None = None,
        loss: Loss = cross_entropy,
    ) -> None:
        self.pad_id, self.weights, self.loss = pad_id, weights, loss

    def collate(self, examples: Examples, rows: np.ndarray, rng: np.random.Generator) -> Batch:
        """Build a padded batch.

        The tensors input_ids and attention_mask are (batch, length), or (batch, windows, length)
        with windows. The labels are (batch,).
        """
        batch = examples.pad(rows, self.pad_id)
        if examples.labels is not None:
            batch["labels"] = torch.as_tensor(examples.labels[rows], dtype=torch.int64)
        return batch

    def count(self, batch: Batch) -> float:
        """Return the number of labels or, with class weights, the sum of the labels' weights."""
        # Training needs the count before a forward pass, so call the loss with zeros as logits.
        labels = batch["labels"]
        weights = None if self.weights is None else self.weights.to(labels.device)
        classes = int(labels.max()) + 1 if weights is None else len(weights)
        return float(
            self.loss(torch.zeros(len(labels), classes, device=labels.device), labels, weights)[1]
        )

    def loss_sum(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the summed loss as a scalar, and the detached logits (batch, classes)."""
        # Autocast may return logits in half precision, but losses and metrics expect fp32.
        logits = self.logits(model, batch).float()
        weights = None if self.weights is None else self.weights.to(logits.device)
        return self.loss(logits, batch["labels"], weights)[0], logits.detach()

    def logits(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the model's logits (batch, classes)."""
        inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
        logits: Tensor = model(**inputs).logits
        return logits

    def scores(self, outputs: Tensor, labels: np.ndarray) -> dict[str, float]:
        """Return all classification metrics."""
        return classification_scores(outputs.numpy(), labels)


class LanguageModel:
    """The objective of predicting the next token; the loss ignores padding."""

    def __init__(self, pad_id: int, loss: Loss = cross_entropy) -> None:
        self.pad_id, self.loss = pad_id, loss

    def collate(self, examples: Examples, rows: np.ndarray, rng: np.random.Generator) -> Batch:
        """Build a padded batch with the next tokens as labels; all tensors are (batch, length)."""
        batch = examples.pad(rows, self.pad_id)
        labels = torch.full_like(batch["input_ids"], IGNORED)
        # The label of a position is the next token, so the last position has none.
        labels[:, :-1] = batch["input_ids"][:, 1:]
        labels[:, :-1].masked_fill_(batch["attention_mask"][:, 1:] == 0, IGNORED)
        return {**batch, "labels": labels}

    def count(self, batch: Batch) -> float:
        """Return the number of tokens to predict."""
        return int((batch["labels"] != IGNORED).sum())

    def loss_sum(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the summed loss as a scalar, and a detached copy (1,) of the loss.

        The copy is returned instead of the logits, because `scores` needs no outputs.
        """
        inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
        logits = model(**inputs).logits.float()
        # (batch * length, vocabulary) and (batch * length,).
        loss, _ = self.loss(logits.flatten(0, 1), batch["labels"].flatten(), None)
        return loss, loss.detach().reshape(1)

    def scores(self, outputs: Tensor, labels: np.ndarray) -> dict[str, float]:
        """Return an empty dict: the only metric is the loss, which `evaluate` computes itself."""
        return {}


class MaskedLanguageModel(LanguageModel):
    """The objective of predicting randomly selected tokens (BERT; Devlin et al., 2019).

    80% of the selected tokens are masked, 10% are replaced by random tokens, and 10% do not change.

    Args:
        special_ids: ids of the tokens that are never selected.
        share: fraction of the tokens that are selected.
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
        """Build a padded batch with masked tokens; only selected tokens have labels."""
        batch = examples.pad(rows, self.pad_id)
        ids = batch["input_ids"].numpy()
        allowed = ~np.isin(ids, self.special_ids) & (batch["attention_mask"].numpy() == 1)
        chosen = allowed & (rng.random(ids.shape) < self.share)
        draw = rng.random(ids.shape)
        # Draws below 0.8 give the mask token, from 0.9 a random one (Devlin et al., section 3.1).
        masked = np.where(chosen & (draw < 0.8), self.mask_id, ids)
        random_ids = rng.integers(0, self.vocab_size, ids.shape)
        masked = np.where(chosen & (draw >= 0.9), random_ids, masked)
        labels = np.where(chosen, ids, IGNORED)
        return {
            "input_ids": torch.from_numpy(masked),
            "attention_mask": batch["attention_mask"],
            "labels": torch.from_numpy(labels),
        }
