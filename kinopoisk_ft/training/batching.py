"""Build padded batches from tokenized reviews, and prepare batches in a background thread."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from kinopoisk_ft.data.windows import Windows, pad, pad_windows

# Evaluation batches of short reviews have up to MAX_ROWS_FACTOR * batch_size rows.
MAX_ROWS_FACTOR = 8
# See `group_by_length`. A larger number saves padding, but makes the order less random.
BATCHES_PER_BUCKET = 32
# Number of batches prepared ahead; a larger number would only need more memory.
PREFETCH_DEPTH = 3

T = TypeVar("T")


@dataclass(frozen=True)
class Examples:
    """Tokenized reviews.

    Args:
        input_ids: the token ids of N reviews, without padding.
        labels: (N,); None if the reviews have no labels.
        windows: sizes of the windows into which each review is divided; None if the model reads
            each review as one sequence.
    """

    input_ids: Sequence[Sequence[int]]
    labels: np.ndarray | None = None
    windows: Windows | None = None

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def lengths(self) -> np.ndarray:
        """The number of tokens that the model reads in each review, (N,).

        A token in two windows counts twice.
        """
        lengths = count_ids(self.input_ids)
        return lengths if self.windows is None else self.windows.count_tokens(lengths)

    @property
    def most_windows(self) -> int:
        """The largest number of windows of a review; 1 if the reviews are not divided."""
        if self.windows is None:
            return 1
        return int(self.windows.count(count_ids(self.input_ids)).max(initial=1))

    def pad(self, rows: Iterable[int], pad_id: int) -> dict[str, Tensor]:
        """Select the reviews with the indices `rows`, and pad them on the right.

        Returns:
            The tensors input_ids and attention_mask, each (batch, length), or (batch, windows,
            length) if reviews are divided into windows.
        """
        chosen = [self.input_ids[i] for i in rows]
        if self.windows is None:
            return pad(chosen, pad_id)
        return pad_windows([self.windows.cut(ids) for ids in chosen], pad_id)

    def split_windows(self) -> Examples:
        """Return all windows as single examples without labels, in the order of the reviews."""
        if self.windows is None:
            return Examples(self.input_ids)
        return Examples([window for ids in self.input_ids for window in self.windows.cut(ids)])


def count_ids(input_ids: Sequence[Sequence[int]]) -> np.ndarray:
    """Return the number of token ids of each review, (N,)."""
    return np.fromiter(map(len, input_ids), dtype=np.int64, count=len(input_ids))


def group_by_length(
    lengths: np.ndarray, batch_size: int, seed: int, epoch: int
) -> list[np.ndarray]:
    """Return shuffled batches of row indices, with reviews of similar length in each batch.

    Rows are shuffled and divided into buckets. Each bucket is sorted by length and divided into
    batches. Then the batches are shuffled. The batch with the longest review comes first, so that a
    lack of memory is found early.
    """
    # The batches depend only on seed and epoch, so a resumed run gets the same ones.
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(len(lengths))
    batches: list[np.ndarray] = []
    size = batch_size * BATCHES_PER_BUCKET
    for start in range(0, len(order), size):
        bucket = order[start : start + size]
        # A stable sort gives reviews of equal length the same order on every machine.
        bucket = bucket[np.argsort(-lengths[bucket], kind="stable")]
        batches += [bucket[i : i + batch_size] for i in range(0, len(bucket), batch_size)]
    batches = [batches[i] for i in rng.permutation(len(batches))]
    longest = max(range(len(batches)), key=lambda i: lengths[batches[i]].max())
    batches[0], batches[longest] = batches[longest], batches[0]
    return batches


def select_epoch_rows(examples: Examples, sampling: str, seed: int, epoch: int) -> np.ndarray:
    """Return the indices of the reviews to train on in an epoch, (N,) for N examples.

    Each index occurs once, unless `sampling` is "balanced"; see `draw_balanced_rows`.
    """
    if sampling == "balanced" and examples.labels is not None:
        return draw_balanced_rows(examples.labels, seed, epoch)
    return np.arange(len(examples))


def draw_balanced_rows(labels: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """Draw N row indices for N labels, with the same number of rows for each class.

    Rows of rare classes are repeated. Some rows of frequent classes are left out, and each epoch
    leaves out different rows.
    """
    # The 2 makes this random stream independent of those that group reviews and mask tokens.
    rng = np.random.default_rng([seed, epoch, 2])
    # If N is not divisible by the number of classes, the last ones in this order get one more row.
    classes = rng.permutation(np.unique(labels))
    drawn = []
    for i, label in enumerate(classes):
        rows = np.flatnonzero(labels == label)
        # Over all classes, `wanted` adds up to N (Hermite's identity).
        wanted = (len(labels) + i) // len(classes)
        # A row is drawn again only after all other rows of its class.
        rounds = -(-wanted // len(rows))
        drawn.append(np.concatenate([rng.permutation(rows) for _ in range(rounds)])[:wanted])
    return np.concatenate(drawn)


def batch_by_length(examples: Examples, batch_size: int) -> list[np.ndarray]:
    """Return batches of row indices for evaluation, longest reviews first.

    The first batch has `batch_size` rows. Later batches have up to MAX_ROWS_FACTOR times as many
    rows, but not more tokens (including padding) than the first batch. If reviews are divided into
    windows, the first batch has about `batch_size` windows, but at least one review.
    """
    lengths = examples.lengths
    order = np.argsort(-lengths, kind="stable")
    # Tokens of `batch_size` sequences, with padding. An empty review counts as one token.
    tokens = batch_size * max(1, int(lengths.max(initial=1))) // examples.most_windows
    batches, start = [], 0
    while start < len(order):
        size = tokens // max(1, int(lengths[order[start]]))
        size = min(max(1, size), MAX_ROWS_FACTOR * batch_size)
        batches.append(order[start : start + size])
        start += size
    return batches


def split_batch(batch: dict[str, Tensor], rows: int, trim: bool = True) -> list[dict[str, Tensor]]:
    """Split a batch into as few micro-batches as possible.

    A batch with at most `rows` rows (or windows) is returned unchanged. Otherwise, the rows are
    sorted by length, longest first.

    Args:
        rows: maximum number of rows in the micro-batch with the longest review. A micro-batch of
            shorter reviews may have more rows, but has about the same number of tokens. If reviews
            are divided into windows, this is a number of windows. A review is never split, so a
            micro-batch may have as many windows as the longest review.
        trim: whether to pad each micro-batch only to its longest review. This must be False if the
            output of the model depends on padding.
    """
    # (batch, length), or (batch, windows, length).
    mask = batch["attention_mask"]
    sequences = mask.flatten(0, -2).any(1).sum() if mask.dim() == 3 else len(mask)
    if sequences <= rows:
        return [batch]
    # An empty review counts as one token, because `_pack_rows` divides by the lengths.
    lengths = mask.flatten(1).sum(1).clamp(min=1)
    if not trim:
        lengths = torch.full_like(lengths, mask[0].numel())
    order = lengths.argsort(descending=True, stable=True)
    # Of a review with many windows, even a single one may have more tokens.
    limit = max(rows * mask.shape[-1], int(lengths.max()))
    sizes = _balance_sizes(lengths[order].tolist(), limit)
    columns = {key: value[order].split(sizes) for key, value in batch.items()}
    parts = ({key: values[i] for key, values in columns.items()} for i in range(len(sizes)))
    return [_trim(part) if trim else part for part in parts]


def _trim(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    # Padding is on the right, and empty windows come last, so slices can remove both.
    real = batch["attention_mask"].any(0)
    # The dimensions after the batch: (length,), or (windows, length).
    others = [real.any(1), real.any(0)] if real.dim() == 2 else [real]
    kept = (slice(None), *(slice(max(1, int(other.sum()))) for other in others))
    # Labels of a classifier are (batch,), and have no columns to remove.
    return {key: value[kept] if value.dim() > 1 else value for key, value in batch.items()}


def depends_on_padding(model: nn.Module) -> bool:
    """Return whether the output of a model depends on padding."""
    # This pooling takes the last position of each row, even if it is padding.
    return any(getattr(part, "pooling", None) == "last_position" for part in model.modules())


def _balance_sizes(lengths: Sequence[int], max_tokens: int) -> list[int]:
    # The lengths are in descending order. Padding counts as tokens.
    # The lowest possible limit is the length of the longest row.
    fewest, low, high = len(_pack_rows(lengths, max_tokens)), lengths[0], max_tokens
    # Among the limits with the fewest micro-batches, the lowest one makes their sizes most similar.
    # Find it by bisection.
    while low < high:
        middle = (low + high) // 2
        if len(_pack_rows(lengths, middle)) <= fewest:
            high = middle
        else:
            low = middle + 1
    return _pack_rows(lengths, low)


def _pack_rows(lengths: Sequence[int], limit: int) -> list[int]:
    sizes, start = [], 0
    while start < len(lengths):
        sizes.append(min(limit // lengths[start], len(lengths) - start))
        start += sizes[-1]
    return sizes


@contextmanager
def prefetch(items: Iterable[T]) -> Iterator[Iterator[T]]:
    """Iterate over `items` while a background thread prepares the next PREFETCH_DEPTH items.

    If the thread raises an exception, the iterator raises this exception after the earlier items.
    At the end of the `with` block, the thread ends, and `items` is closed if it is a generator.
    """
    # One thread keeps the order of the items, and a generator cannot run in two threads at once.
    source, end, thread = iter(items), object(), ThreadPoolExecutor(1, "batches")
    # Without the default value `end`, `next` would raise StopIteration at the end of the items,
    # which becomes a RuntimeError inside the generator `take` (PEP 479).
    ready: deque[Future[Any]] = deque(
        thread.submit(next, source, end) for _ in range(PREFETCH_DEPTH)
    )

    def take() -> Iterator[T]:
        while (item := ready.popleft().result()) is not end:
            ready.append(thread.submit(next, source, end))
            yield item

    try:
        yield take()
    finally:
        # This waits until the thread has ended. A generator that is running cannot be closed.
        thread.shutdown(cancel_futures=True)
        if hasattr(source, "close"):
            source.close()
