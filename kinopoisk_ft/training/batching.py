"""Group tokenized reviews into padded batches, and prepare the next batches in a thread."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

# Evaluation batches of short reviews have up to MAX_ROWS_FACTOR * batch_size rows.
MAX_ROWS_FACTOR = 8
# Batches that are sorted by length together: more save padding, but make the order less random.
BATCHES_PER_BUCKET = 32
# Number of batches prepared ahead; a larger number would only need more memory.
PREFETCH_DEPTH = 2
# The thread of `prefetch` puts this object into its queue after the last item.
_END = object()

T = TypeVar("T")


@dataclass(frozen=True)
class Examples:
    """Hold the unpadded token ids of N reviews, and their labels (N,) or None."""

    input_ids: Sequence[Sequence[int]]
    labels: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def lengths(self) -> np.ndarray:
        """Return the number of tokens of each review, (N,)."""
        return np.fromiter((len(ids) for ids in self.input_ids), dtype=np.int64, count=len(self))


def group_by_length(
    lengths: np.ndarray, batch_size: int, seed: int, epoch: int
) -> list[np.ndarray]:
    """Return shuffled batches of row indices, where each batch has reviews of similar lengths.

    Rows are shuffled, divided into buckets, sorted by length within each bucket and divided into
    batches. The batches are then shuffled, except that the batch with the longest review comes
    first, because it needs the most memory and should fail early. Each row is in exactly one batch,
    and at most one batch has fewer than `batch_size` rows.
    """
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(len(lengths))
    batches: list[np.ndarray] = []
    size = batch_size * BATCHES_PER_BUCKET
    for start in range(0, len(order), size):
        bucket = order[start : start + size]
        bucket = bucket[np.argsort(-lengths[bucket], kind="stable")]
        batches += [bucket[i : i + batch_size] for i in range(0, len(bucket), batch_size)]
    batches = [batches[i] for i in rng.permutation(len(batches))]
    longest = max(range(len(batches)), key=lambda i: lengths[batches[i]].max())
    batches[0], batches[longest] = batches[longest], batches[0]
    return batches


def select_epoch_rows(examples: Examples, sampling: str, seed: int, epoch: int) -> np.ndarray:
    """Return the N row indices of an epoch: each row once, or a sample with balanced classes."""
    if sampling == "balanced" and examples.labels is not None:
        return draw_balanced_rows(examples.labels, seed, epoch)
    return np.arange(len(examples))


def draw_balanced_rows(labels: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """Draw as many row indices as there are labels, with the same number of rows for each class.

    Rows of rare classes are repeated. Within a class, the numbers of repetitions differ by at most
    one. Some rows of frequent classes are left out, different ones in each epoch.
    """
    # The 2 makes this random stream independent of those that group reviews and mask tokens.
    rng = np.random.default_rng([seed, epoch, 2])
    # If N is not divisible by the number of classes, the last ones in this order get one more row.
    classes = rng.permutation(np.unique(labels))
    drawn = []
    for i, label in enumerate(classes):
        rows = np.flatnonzero(labels == label)
        wanted = (len(labels) + i) // len(classes)
        rounds = -(-wanted // len(rows))
        drawn.append(np.concatenate([rng.permutation(rows) for _ in range(rounds)])[:wanted])
    return np.concatenate(drawn)


def batch_by_length(lengths: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """Return batches of row indices for evaluation, sorted by length, longest reviews first.

    The first batch has `batch_size` rows. Later batches have up to `MAX_ROWS_FACTOR * batch_size`
    rows, but not more tokens than the first batch, padding included.
    """
    order = np.argsort(-lengths, kind="stable")
    tokens = batch_size * max(1, int(lengths.max(initial=1)))
    batches, start = [], 0
    while start < len(order):
        size = tokens // max(1, int(lengths[order[start]]))
        size = min(size, MAX_ROWS_FACTOR * batch_size)
        batches.append(order[start : start + size])
        start += size
    return batches


def split_batch(batch: dict[str, Tensor], rows: int, trim: bool = True) -> list[dict[str, Tensor]]:
    """Split a batch into micro-batches of at most `rows * length` tokens, padding included.

    Here, `length` is the sequence length of the batch. The number of micro-batches is minimal, and
    their numbers of tokens are as equal as possible. Rows are sorted by length, longest first. A
    batch of at most `rows` rows is returned unchanged.

    Args:
        trim: whether to pad each micro-batch only to its longest review. If False, micro-batches
            keep the length of the batch, for models whose output depends on padding.
    """
    mask = batch["attention_mask"]
    if len(mask) <= rows:
        return [batch]
    lengths = mask.sum(1).clamp(min=1) if trim else torch.full((len(mask),), mask.shape[1])
    order = lengths.argsort(descending=True, stable=True)
    sizes = _balance_sizes(lengths[order].tolist(), rows * mask.shape[1])
    columns = {key: value[order].split(sizes) for key, value in batch.items()}
    micro_batches = []
    for i, longest in enumerate(lengths[order][[0, *np.cumsum(sizes[:-1])]].tolist()):
        part = {key: values[i] for key, values in columns.items()}
        micro_batches.append({k: v[:, :longest] if v.dim() > 1 else v for k, v in part.items()})
    return micro_batches


def depends_on_padding(model: nn.Module) -> bool:
    """Return whether a model's output depends on padding, because it pools the last position."""
    return any(getattr(part, "pooling", None) == "last_position" for part in model.modules())


def _balance_sizes(lengths: Sequence[int], max_tokens: int) -> list[int]:
    """Divide rows into as few micro-batches as possible, of similar size; return the row counts.

    Args:
        lengths: number of tokens of each row, in descending order.
        max_tokens: maximum number of tokens of a micro-batch, padding included.
    """
    fewest, low, high = len(_pack_rows(lengths, max_tokens)), lengths[0], max_tokens
    # Find the lowest limit with the fewest micro-batches by bisection: their sizes differ least.
    while low < high:
        middle = (low + high) // 2
        if len(_pack_rows(lengths, middle)) <= fewest:
            high = middle
        else:
            low = middle + 1
    return _pack_rows(lengths, low)


def _pack_rows(lengths: Sequence[int], limit: int) -> list[int]:
    """Fill micro-batches in order, each up to `limit` tokens, and return their row counts."""
    sizes, start = [], 0
    while start < len(lengths):
        sizes.append(min(limit // lengths[start], len(lengths) - start))
        start += sizes[-1]
    return sizes


def pad(rows: Sequence[Sequence[int]], pad_id: int) -> dict[str, Tensor]:
    """Pad rows on the right, and return input_ids and attention_mask, both (batch, longest row)."""
    length = max(1, max(len(row) for row in rows))
    input_ids = torch.full((len(rows), length), pad_id, dtype=torch.int64)
    attention_mask = torch.zeros((len(rows), length), dtype=torch.int64)
    for i, row in enumerate(rows):
        input_ids[i, : len(row)] = torch.as_tensor(row, dtype=torch.int64)
        attention_mask[i, : len(row)] = 1
    return {"input_ids": input_ids, "attention_mask": attention_mask}


class _Failure:
    """Wrap an exception that the thread of `prefetch` passes to the main thread."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


@contextmanager
def prefetch(items: Iterable[T], depth: int = PREFETCH_DEPTH) -> Iterator[Iterator[T]]:
    """Iterate over `items` while a background thread prepares up to `depth` of them ahead.

    An exception in the thread is raised in the consumer, after the items prepared before it. On
    exit, the thread is joined, unused items are dropped, and `items` is closed if it is a
    generator.
    """
    ready: queue.Queue[Any] = queue.Queue(maxsize=depth)
    stop = threading.Event()

    # The timeout lets the thread notice that the consumer has stopped.
    def put(item: object) -> bool:
        while not stop.is_set():
            try:
                ready.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def produce() -> None:
        source = iter(items)
        last: object = _END
        try:
            for item in source:
                if not put(item):
                    break
        except BaseException as error:
            last = _Failure(error)
        finally:
            if hasattr(source, "close"):
                source.close()
        put(last)

    producer = threading.Thread(target=produce, name="batches", daemon=True)
    producer.start()
    try:
        yield _consume(ready)
    finally:
        stop.set()
        producer.join()


def _consume(ready: queue.Queue[Any]) -> Iterator[Any]:
    while True:
        item = ready.get()
        if item is _END:
            return
        if isinstance(item, _Failure):
            raise item.error
        yield item
