"""Examples and the order in which they are served: every one exactly once an epoch."""

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


def group_by_length(
    lengths: np.ndarray, batch_size: int, seed: int, epoch: int
) -> list[np.ndarray]:
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


def select_epoch_rows(examples: Examples, sampling: str, seed: int, epoch: int) -> np.ndarray:
    """Return the N row numbers of an epoch: each row once, or classes balanced."""
    if sampling == "balanced" and examples.labels is not None:
        return draw_balanced_rows(examples.labels, seed, epoch)
    return np.arange(len(examples))


def draw_balanced_rows(labels: np.ndarray, seed: int, epoch: int) -> np.ndarray:
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


def batch_by_length(lengths: np.ndarray, batch_size: int) -> list[np.ndarray]:
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


def split_batch(batch: dict[str, Tensor], rows: int, trim: bool = True) -> list[dict[str, Tensor]]:
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
    sizes = _cut_evenly(lengths[order].tolist(), rows * mask.shape[1])
    cut = {key: value[order].split(sizes) for key, value in batch.items()}
    found = []
    for i, longest in enumerate(lengths[order][[0, *np.cumsum(sizes[:-1])]].tolist()):
        own = {key: values[i] for key, values in cut.items()}
        found.append({k: v[:, :longest] if v.dim() > 1 else v for k, v in own.items()})
    return found


def reads_pads(model: nn.Module) -> bool:
    """Return whether a model's answer depends on the padding, as the study's pooling does."""
    return any(getattr(part, "pooling", None) == "last_position" for part in model.modules())


def _cut_evenly(lengths: Sequence[int], most: int) -> list[int]:
    """Return the rows of each part: no more parts than `most` tokens ask for, and evenly full.

    lengths: of the rows, falling.
    """
    fewest, low, high = len(_cut(lengths, most)), lengths[0], most
    while low < high:  # the least limit that gives as few parts
        middle = (low + high) // 2
        low, high = (low, middle) if len(_cut(lengths, middle)) <= fewest else (middle + 1, high)
    return _cut(lengths, low)


def _cut(lengths: Sequence[int], limit: int) -> list[int]:
    sizes, start = [], 0
    while start < len(lengths):
        sizes.append(min(limit // lengths[start], len(lengths) - start))
        start += sizes[-1]
    return sizes


def pad(rows: Sequence[Sequence[int]], pad_id: int) -> dict[str, Tensor]:
    """Pad on the right to the longest row: input_ids and attention_mask, both (batch, length)."""
    length = max(1, max(len(row) for row in rows))
    input_ids = torch.full((len(rows), length), pad_id, dtype=torch.int64)
    attention_mask = torch.zeros((len(rows), length), dtype=torch.int64)
    for i, row in enumerate(rows):
        input_ids[i, : len(row)] = torch.as_tensor(row, dtype=torch.int64)
        attention_mask[i, : len(row)] = 1
    return {"input_ids": input_ids, "attention_mask": attention_mask}


T = TypeVar("T")
DEPTH = 2  # one waiting and one in the making; more would only hold memory


class _Failure:
    """What the maker raised, on its way to who waits."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


_END = object()


@contextmanager
def prefetch(items: Iterable[T], depth: int = DEPTH) -> Iterator[Iterator[T]]:
    """Iterate over `items` with up to `depth` made ahead by a thread, in their order.

    What making an item raises is raised where it would have been handed over. On leaving, the
    thread has ended, items not taken are dropped, and a generator among `items` is closed.
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

    def make() -> None:
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

    maker = threading.Thread(target=make, name="batches", daemon=True)
    maker.start()
    try:
        yield _take(ready)
    finally:
        stop.set()
        maker.join()


def _take(ready: queue.Queue[Any]) -> Iterator[Any]:
    while True:
        item = ready.get()
        if item is _END:
            return
        if isinstance(item, _Failure):
            raise item.error
        yield item
