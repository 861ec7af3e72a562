"""Group tokenized reviews into padded batches; prepare the next batches in a thread."""

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

# An evaluation batch of short reviews has at most this many times `batch_size` rows.
MAX_ROWS_FACTOR = 8
# Sort this many batches together: enough to save padding, few enough to keep the order random.
BATCHES_PER_BUCKET = 32
# Batches prepared ahead: one waits while the next is built. More would only take memory.
PREFETCH_DEPTH = 2
# The last item that the thread of `prefetch` puts into its queue.
_END = object()

T = TypeVar("T")


@dataclass(frozen=True)
class Examples:
    """Hold the token ids of N reviews, unpadded, and their labels (N,), or None without labels."""

    input_ids: Sequence[Sequence[int]]
    labels: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def lengths(self) -> np.ndarray:
        """Count the tokens of each review, (N,)."""
        return np.fromiter((len(ids) for ids in self.input_ids), dtype=np.int64, count=len(self))


def group_by_length(
    lengths: np.ndarray, batch_size: int, seed: int, epoch: int
) -> list[np.ndarray]:
    """Return shuffled batches of row numbers whose reviews have similar lengths.

    Rows are shuffled, divided into buckets, sorted by length within each bucket and divided into
    batches. The batches are then shuffled, except that the batch with the longest review comes
    first, so that a lack of memory shows early. Each row is in exactly one batch, and at most one
    batch has fewer than `batch_size` rows.
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
    """Return the N row numbers of an epoch: each row once, or a draw with balanced classes."""
    if sampling == "balanced" and examples.labels is not None:
        return draw_balanced_rows(examples.labels, seed, epoch)
    return np.arange(len(examples))


def draw_balanced_rows(labels: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """Draw N row numbers from N labels so that all classes have the same number of rows.

    Rows of rare classes are repeated: within a class, the numbers of repetitions differ by at most
    one. Some rows of frequent classes are left out, and each epoch leaves out others.
    """
    rng = np.random.default_rng([seed, epoch, 2])
    # If N is not divisible by the number of classes, the last ones in this order get one row more.
    classes = rng.permutation(np.unique(labels))
    drawn = []
    for i, label in enumerate(classes):
        rows = np.flatnonzero(labels == label)
        wanted = (len(labels) + i) // len(classes)
        rounds = -(-wanted // len(rows))
        drawn.append(np.concatenate([rng.permutation(rows) for _ in range(rounds)])[:wanted])
    return np.concatenate(drawn)


def batch_by_length(lengths: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """Return batches of row numbers for evaluation, the longest reviews first, each row once.

    The first batch has `batch_size` rows. Later batches have as many rows as fit into the tokens of
    the first, padding included, but at most `MAX_ROWS_FACTOR * batch_size`.
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
    """Split a batch into micro-batches whose tokens do not exceed `rows` full-length rows.

    The number of micro-batches is the smallest possible, and their numbers of tokens, padding
    included, are as equal as possible. The longest reviews come first. A batch of at most `rows`
    rows is returned unchanged.

    Args:
        trim: pad each micro-batch to its longest review. Without it all keep the length of the
            batch, for a model whose output depends on padding.
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
    """Return whether a model's output depends on the padding: it pools the last position."""
    return any(getattr(part, "pooling", None) == "last_position" for part in model.modules())


def _balance_sizes(lengths: Sequence[int], max_tokens: int) -> list[int]:
    """Return the number of rows of each micro-batch: as few micro-batches and as equal as possible.

    Args:
        lengths: tokens of each row, in descending order.
        max_tokens: limit for the tokens of a micro-batch, padding included.
    """
    fewest, low, high = len(_pack_rows(lengths, max_tokens)), lengths[0], max_tokens
    # Search for the lowest limit that needs no more micro-batches.
    while low < high:
        middle = (low + high) // 2
        if len(_pack_rows(lengths, middle)) <= fewest:
            high = middle
        else:
            low = middle + 1
    return _pack_rows(lengths, low)


def _pack_rows(lengths: Sequence[int], limit: int) -> list[int]:
    """Fill micro-batches with rows, in order, up to `limit` tokens; return their row counts."""
    sizes, start = [], 0
    while start < len(lengths):
        sizes.append(min(limit // lengths[start], len(lengths) - start))
        start += sizes[-1]
    return sizes


def pad(rows: Sequence[Sequence[int]], pad_id: int) -> dict[str, Tensor]:
    """Pad rows on the right: return input_ids and attention_mask, both (batch, longest row)."""
    length = max(1, max(len(row) for row in rows))
    input_ids = torch.full((len(rows), length), pad_id, dtype=torch.int64)
    attention_mask = torch.zeros((len(rows), length), dtype=torch.int64)
    for i, row in enumerate(rows):
        input_ids[i, : len(row)] = torch.as_tensor(row, dtype=torch.int64)
        attention_mask[i, : len(row)] = 1
    return {"input_ids": input_ids, "attention_mask": attention_mask}


class _Failure:
    """Carry an exception from the thread of `prefetch` to the loop that waits for it."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


@contextmanager
def prefetch(items: Iterable[T], depth: int = PREFETCH_DEPTH) -> Iterator[Iterator[T]]:
    """Iterate over `items`, of which a thread prepares up to `depth` ahead.

    An exception raised while preparing an item is raised again in the iteration, in place of that
    item. On exit the thread has ended, unused items are dropped, and `items` is closed if it is a
    generator.
    """
    ready: queue.Queue[Any] = queue.Queue(maxsize=depth)
    stop = threading.Event()

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
