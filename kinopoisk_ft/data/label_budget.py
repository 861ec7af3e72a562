"""Keep a part of the train split, to measure how many labels an approach needs."""

from __future__ import annotations

import itertools

import numpy as np

from kinopoisk_ft.errors import UserError

# Of this many groups, the next one is the one that keeps the class proportions best.
CANDIDATES = 10
# A group may have this many rows at any time. Larger groups wait until the subset has grown.
SMALL_GROUP = 20


def limit_rows(
    labels: np.ndarray, groups: np.ndarray | None, limit: float, seed: int
) -> np.ndarray:
    """Choose rows of the train split with about the same class proportions.

    Subsets with the same seed are nested: a smaller one is part of each larger one.

    Args:
        labels: (N,) class of each row.
        groups: (N,) group of each row, for example its film. If given, groups are kept whole, and
            the number of rows is only close to `limit`.
        limit: number of rows, or a fraction between 0 and 1.

    Returns:
        The sorted positions of the chosen rows.

    Raises:
        UserError: there are fewer rows than `limit`, or the chosen rows lack a class.
    """
    count = round(limit * len(labels)) if limit < 1 else int(limit)
    if count > len(labels):
        raise UserError(
            f"data.train_limit={limit} is more than the {len(labels):,} reviews of the train split",
            where="data.train_limit",
            fix="set a smaller number, or null for all reviews",
        )
    rng = np.random.default_rng(seed)
    if groups is None:
        rows = _order_rows(labels, rng)[:count]
    else:
        order = _order_groups(labels, groups, rng)
        totals = np.cumsum([len(group) for group in order])
        rows = np.concatenate(order[: 1 + int(np.abs(totals - count).argmin())])
    if lacking := set(labels.tolist()) - set(labels[rows].tolist()):
        raise UserError(
            f"data.train_limit={limit} keeps no review of {len(lacking)} of the classes",
            where="data.train_limit",
            fix="set a larger number",
        )
    return np.sort(rows)


def _order_rows(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    # The ranks of a class are spread evenly over (0, 1), so that each beginning of the order has
    # the class proportions of the whole.
    ranks = np.empty(len(labels))
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        ranks[rows] = (np.arange(len(rows)) + rng.random()) / len(rows)
    return np.argsort(ranks, kind="stable")


def _order_groups(
    labels: np.ndarray, groups: np.ndarray, rng: np.random.Generator
) -> list[np.ndarray]:
    """Return the rows of each group, so that the number of rows grows without jumps."""
    shares = np.bincount(labels) / len(labels)
    waiting = [np.flatnonzero(groups == name) for name in rng.permutation(np.unique(groups))]
    counts = np.zeros(len(shares))
    order = []
    while waiting:
        allowed = max(SMALL_GROUP, counts.sum() / 2)
        small = (i for i, rows in enumerate(waiting) if len(rows) <= allowed)
        fitting = list(itertools.islice(small, CANDIDATES))
        fitting = fitting or [min(range(len(waiting)), key=lambda i: len(waiting[i]))]
        added = [counts + np.bincount(labels[waiting[i]], minlength=len(shares)) for i in fitting]
        distances = [np.abs(one / one.sum() - shares).sum() for one in added]
        best = int(np.argmin(distances))
        counts = added[best]
        order.append(waiting.pop(fitting[best]))
    return order
