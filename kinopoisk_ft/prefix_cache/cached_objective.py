"""Training and evaluation on hidden states in place of token ids."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor, nn

from kinopoisk_ft.training.batching import Examples, batch_by_length, pad
from kinopoisk_ft.training.device import to_device
from kinopoisk_ft.training.objective import Batch, Classification
from kinopoisk_ft.training.precision import Precision
from kinopoisk_ft.training.progress import Progress

Resume = Callable[[Tensor, Tensor], Any]


class States(Protocol):
    """Hidden states by review."""

    def __getitem__(self, row: int) -> np.ndarray:
        """Return (kept tokens, d_model) of one review."""
        ...


@dataclass(frozen=True)
class HiddenExamples(Examples):
    """Examples with the hidden states of each review: of its real tokens, or one vector of it."""

    hidden: States | None = None


class HiddenClassification(Classification):
    """Cross-entropy over classes, from hidden states on.

    Args:
        resume: maps hidden (batch, length or 1, d_model) and attention_mask (batch, length) to an
            output with logits.
        options: those of `Classification`.
    """

    def __init__(self, resume: Resume, pad_id: int, **options: Any) -> None:
        super().__init__(pad_id, **options)
        self.resume = resume

    def collate(self, examples: Examples, rows: np.ndarray, rng: np.random.Generator) -> Batch:
        """Return hidden (batch, length or 1, d_model), attention_mask and labels."""
        batch = super().collate(examples, rows, rng)
        del batch["input_ids"]
        states = cast(States, cast(HiddenExamples, examples).hidden)
        return {**batch, "hidden": _padded([states[int(row)] for row in rows])}

    def logits(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the logits (batch, classes) of the model's upper part."""
        logits: Tensor = self.resume(batch["hidden"].float(), batch["attention_mask"]).logits
        return logits


def _padded(blocks: list[np.ndarray]) -> Tensor:
    """Pad with zeros on the right to the longest: (batch, length, d_model), in the file's dtype."""
    longest = max(1, max(len(block) for block in blocks))
    hidden = np.zeros((len(blocks), longest, blocks[0].shape[1]), blocks[0].dtype)
    for i, block in enumerate(blocks):
        hidden[i, : len(block)] = block
    return torch.from_numpy(hidden)


@torch.inference_mode()
def hidden_states(
    frozen: Callable[..., Tensor],
    examples: Examples,
    lengths: np.ndarray,
    pad_id: int,
    precision: Precision,
    batch_size: int,
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (review, its states (length, d_model) in fp32), in batches of like lengths.

    The longest come first, so that a lack of memory is met early.

    Args:
        frozen: maps input_ids and attention_mask to states; in evaluation mode.
        lengths: states to keep of each review.
    """
    batches = batch_by_length(examples.lengths, batch_size)
    with Progress(0, len(batches)) as progress:
        for step, rows in enumerate(batches, start=1):
            batch = pad([examples.input_ids[i] for i in rows], pad_id)
            with precision.autocast():
                states = frozen(**to_device(batch, precision.device))
            for row, block in zip(rows, states.float().cpu().numpy(), strict=True):
                yield int(row), block[: lengths[row]]
            progress.to(step)
