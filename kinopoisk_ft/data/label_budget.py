"""Keep a part of the train split, to measure how many labels an approach needs."""

from __future__ import annotations

import itertools

import numpy as np

from kinopoisk_ft.errors import UserError

# Number of random groups from which the next group is chosen.
CANDIDATES = 10
# Groups of up to this many rows can be added at any time. A larger group is added after the subset
# has at least twice as many rows as the group.
SMALL_GROUP = 20


def limit_rows(
    labels: np.ndarray, groups: np.ndarray | None, limit: float, seed: int
) -> np.ndarray:
    """Choose train rows that have about the class proportions of the whole train split.

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
    # The order of the rows does not depend on `limit`, so subsets with the same seed are nested.
    rng = np.random.default_rng(seed)
    if groups is None:
        rows = _order_rows(labels, rng)[:count]
    else:
        order = _order_groups(labels, groups, rng)
        # Choose the number of groups that brings the number of rows closest to `count`.
        totals = np.cumsum([len(group) for group in order])
        rows = np.concatenate(order[: 1 + int(np.abs(totals - count).argmin())])
    if lacking := set(labels.tolist()) - set(labels[rows].tolist()):
        raise UserError(
            f"data.train_limit={limit} leaves {len(lacking)} of the classes without reviews",
            where="data.train_limit",
            fix="set a larger number",
        )
    # The rows keep the order of the train split, so the largest subset is the train split itself.
    return np.sort(rows)


def _order_rows(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    # The ranks of each class are spread evenly over (0, 1). Any number of first rows therefore has
    # about the same class proportions as all rows.
    ranks = np.empty(len(labels))
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        # Without the random offset, the first rank of each class would be 0, and small subsets
        # would contain too many rows of rare classes.
        ranks[rows] = (np.arange(len(rows)) + rng.random()) / len(rows)
    return np.argsort(ranks, kind="stable")


def _order_groups(
    labels: np.ndarray, groups: np.ndarray, rng: np.random.Generator
) -> list[np.ndarray]:
    """Return the row positions of each group, in the order in which `limit_rows` adds the groups.

    Each step draws a few random groups, and adds the group that brings the class proportions of
    the subset closest to the class proportions of all rows. A group of more than SMALL_GROUP rows
    waits until the subset has twice as many rows. If all remaining groups have to wait, the groups
    of up to twice the smallest size can be added.
    """
    # (classes,): class proportions of all rows.
    shares = np.bincount(labels) / len(labels)
    waiting = [np.flatnonzero(groups == name) for name in rng.permutation(np.unique(groups))]
    counts = np.zeros(len(shares))
    order = []
    while waiting:
        fitting = _find_small(waiting, max(SMALL_GROUP, int(counts.sum()) // 2))
        fitting = fitting or _find_small(waiting, 2 * min(map(len, waiting)))
        # `waiting` is in random order. If all fitting groups were candidates, the choice would not
        # depend on the seed.
        fitting = fitting[: min(CANDIDATES, (len(fitting) + 1) // 2)]
        added = [counts + np.bincount(labels[waiting[i]], minlength=len(shares)) for i in fitting]
        # The sum of the absolute differences between two sets of proportions, from 0 to 2.
        distances = [np.abs(one / one.sum() - shares).sum() for one in added]
        best = int(np.argmin(distances))
        counts = added[best]
        order.append(waiting.pop(fitting[best]))
    return order


def _find_small(waiting: list[np.ndarray], largest: int) -> list[int]:
    """Return the positions of the first groups of at most `largest` rows, enough to choose from."""
    small = (i for i, rows in enumerate(waiting) if len(rows) <= largest)
    # There may be as many groups as rows, so a search of all groups in each step would take hours.
    return list(itertools.islice(small, 2 * CANDIDATES))
