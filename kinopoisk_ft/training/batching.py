"""Examples and the order in which they are served: every one exactly once an epoch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

MOST = 8  # a batch of one-word reviews need not have thousands of rows
BUCKET = 32  # batches sorted together: enough to save padding, few enough to stay shuffled


@dataclass(frozen=True)
class Examples:
    """Token ids of N reviews, unpadded, and their labels (N,) where there are some."""

    input_ids: Sequence[Sequence[int]]
    labels: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each review, (N,)."""
        return np.fromiter((len(ids) for ids in self.input_ids), dtype=np.int64, count=len(self))


def length_grouped(lengths: np.ndarray, batch_size: int, seed: int, epoch: int) -> list[np.ndarray]:
    """Return shuffled batches of row numbers in which reviews have like lengths.

    Rows are shuffled, cut into buckets, sorted by length within a bucket and cut into batches; the
    batches are shuffled, but the one with the longest review comes first, to meet a lack of memory
    early. Only one batch can be short, and every row stands in exactly one.
    """
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(len(lengths))
    batches: list[np.ndarray] = []
    size = batch_size * BUCKET
    for start in range(0, len(order), size):
        bucket = order[start : start + size]
        bucket = bucket[np.argsort(-lengths[bucket], kind="stable")]
        batches += [bucket[i : i + batch_size] for i in range(0, len(bucket), batch_size)]
    batches = [batches[i] for i in rng.permutation(len(batches))]
    longest = max(range(len(batches)), key=lambda i: lengths[batches[i]].max())
    batches[0], batches[longest] = batches[longest], batches[0]
    return batches


def epoch_rows(examples: Examples, sampling: str, seed: int, epoch: int) -> np.ndarray:
    """Return the row numbers that an epoch serves, N of them: each once, or classes balanced."""
    if sampling == "balanced" and examples.labels is not None:
        return balanced_rows(examples.labels, seed, epoch)
    return np.arange(len(examples))


def balanced_rows(labels: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """Return as many row numbers as there are labels, (N,), of each class as many as of any other.

    Within an epoch rows of rare classes repeat, each as often as any other of its class, give or
    take one, and some of frequent classes are left out; which ones differs between epochs.
    """
    rng = np.random.default_rng([seed, epoch, 2])
    classes = rng.permutation(np.unique(labels))  # which get one more where N does not divide
    drawn = []
    for i, label in enumerate(classes):
        rows = np.flatnonzero(labels == label)
        wanted = (len(labels) + i) // len(classes)
        rounds = -(-wanted // len(rows))
        drawn.append(np.concatenate([rng.permutation(rows) for _ in range(rounds)])[:wanted])
    return np.concatenate(drawn)


def by_length(lengths: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """Return batches of row numbers for evaluation, longest first, every row once.

    The first has `batch_size` rows; later ones have as many as keep within its tokens, padding
    included, and at most `MOST` times its rows.
    """
    order = np.argsort(-lengths, kind="stable")
    tokens = batch_size * max(1, int(lengths.max(initial=1)))
    batches, start = [], 0
    while start < len(order):
        size = tokens // max(1, int(lengths[order[start]]))
        size = min(size, MOST * batch_size)
        batches.append(order[start : start + size])
        start += size
    return batches


def parts(batch: dict[str, Tensor], rows: int, trim: bool = True) -> list[dict[str, Tensor]]:
    """Cut a batch into micro-batches of at most as many tokens as `rows` of its longest have.

    They are as few as that allows, their tokens (padding included) as even as can be, the longest
    reviews first. A batch of no more than `rows` rows stays as it is.

    Args:
        trim: each is padded to its own longest review; else as the whole batch, for a model that
            reads pads.
    """
    mask = batch["attention_mask"]
    if len(mask) <= rows:
        return [batch]
    lengths = mask.sum(1).clamp(min=1) if trim else torch.full((len(mask),), mask.shape[1])
    order = lengths.argsort(descending=True, stable=True)
    sizes = _even_cuts(lengths[order].tolist(), rows * mask.shape[1])
    cut = {key: value[order].split(sizes) for key, value in batch.items()}
    found = []
    for i, longest in enumerate(lengths[order][[0, *np.cumsum(sizes[:-1])]].tolist()):
        own = {key: values[i] for key, values in cut.items()}
        found.append({k: v[:, :longest] if v.dim() > 1 else v for k, v in own.items()})
    return found


def reads_pads(model: nn.Module) -> bool:
    """Return whether a model's answer depends on the padding, as the study's pooling does."""
    return any(getattr(part, "pooling", None) == "last_position" for part in model.modules())


def _even_cuts(lengths: Sequence[int], most: int) -> list[int]:
    """Return the rows of each part: no more parts than `most` tokens ask for, and evenly full.

    lengths: of the rows, falling.
    """
    fewest, low, high = len(_cuts(lengths, most)), lengths[0], most
    while low < high:  # the least limit that gives as few parts
        middle = (low + high) // 2
        low, high = (low, middle) if len(_cuts(lengths, middle)) <= fewest else (middle + 1, high)
    return _cuts(lengths, low)


def _cuts(lengths: Sequence[int], limit: int) -> list[int]:
    sizes, start = [], 0
    while start < len(lengths):
        sizes.append(min(limit // lengths[start], len(lengths) - start))
        start += sizes[-1]
    return sizes


def pad(rows: Sequence[Sequence[int]], pad_id: int, multiple: int = 1) -> dict[str, Tensor]:
    """Pad on the right to the longest row: input_ids and attention_mask, both (batch, length)."""
    longest = max(1, max(len(row) for row in rows))
    length = -(-longest // multiple) * multiple
    input_ids = torch.full((len(rows), length), pad_id, dtype=torch.int64)
    attention_mask = torch.zeros((len(rows), length), dtype=torch.int64)
    for i, row in enumerate(rows):
        input_ids[i, : len(row)] = torch.as_tensor(row, dtype=torch.int64)
        attention_mask[i, : len(row)] = 1
    return {"input_ids": input_ids, "attention_mask": attention_mask}
