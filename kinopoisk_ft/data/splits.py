"""Split rows into train, validation and test."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from sklearn.model_selection import train_test_split

from kinopoisk_ft.data.cleaning import list_first
from kinopoisk_ft.data.split_rules import DateRule, GroupRule, RandomRule
from kinopoisk_ft.errors import UserError, suggest_name
from kinopoisk_ft.text import fold_name

log = logging.getLogger(__name__)

PARTS = ("train", "val", "test")
PREDEFINED = "predefined"
# Maps the value of data.split to the column that it needs and to its split rule.
RULES: dict[str, tuple[str, type[RandomRule | GroupRule | DateRule]]] = {
    "random": ("label", RandomRule),
    "film": ("film", GroupRule),
    "author": ("author", GroupRule),
    "time": ("date", DateRule),
}
# If data.split is one of these columns, rows with the same value in it stay in the same split.
GROUPED = ("film", "author")
SPLITS = (*RULES, PREDEFINED)
# Names that other data sets use for the validation split.
_ALIASES = {"validation": "val", "valid": "val", "dev": "val"}

# Positions of the rows of train, validation and test.
Parts = tuple[np.ndarray, np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Shares:
    """The sizes of the splits, and the seed of random splits.

    The test rows are held out first, then the validation rows.

    Args:
        test_size: fraction of all rows; ignored if `folds` is set.
        val_size: fraction of the rows that are not in test.
        folds: number of cross-validation folds; None for a single split.
        fold: number of the test fold, from 0.
    """

    test_size: float
    val_size: float
    seed: int
    folds: int | None = None
    fold: int | None = None


def split_randomly(labels: np.ndarray, class_names: tuple[str, ...], shares: Shares) -> Parts:
    """Split rows at random with scikit-learn's `train_test_split`, stratified by label.

    Raises:
        UserError: a split would have no row of some class.
    """
    counts = check_classes(labels, class_names)
    hold_out = partial(train_test_split, random_state=shares.seed)
    try:
        rest, test = hold_out(np.arange(len(labels)), test_size=shares.test_size, stratify=labels)
        train, val = hold_out(rest, test_size=shares.val_size, stratify=labels[rest])
    except ValueError as error:
        # A split would have fewer rows than there are classes, or a class has only one row.
        raise too_few_rows_error(counts, class_names) from error
    # If a class has only a few rows, stratification may give none of them to a split.
    for part in (train, val, test):
        if np.bincount(labels[part], minlength=len(counts)).min() == 0:
            raise too_few_rows_error(counts, class_names)
    return train, val, test


def digest_rows(train: np.ndarray, val: np.ndarray, test: np.ndarray) -> str:
    """Return the SHA-256 (hex) of the row numbers in each split; their order matters."""
    digest = hashlib.sha256()
    # Little-endian 64-bit integers give the same digest on every platform.
    for name, rows in (("train", train), ("val", val), ("test", test)):
        # This header shows where one split ends and the next one begins.
        digest.update(f"{name} {len(rows)}\n".encode())
        digest.update(np.ascontiguousarray(rows, dtype="<i8").tobytes())
    return digest.hexdigest()


def check_classes(labels: np.ndarray, class_names: tuple[str, ...]) -> np.ndarray:
    """Return the number of rows of each class.

    Raises:
        UserError: a class has no rows, or there is only one class.
    """
    counts = np.bincount(labels, minlength=len(class_names))
    if counts.min() == 0 or len(counts) < 2:
        found = f"all {len(labels):,} rows have the label '{class_names[0]}'"
        if counts.min() == 0:
            absent = class_names[counts.argmin()]
            found = f"none of the {len(labels):,} rows has the label '{absent}'"
        raise UserError(
            f"{found}; a classifier needs two or more classes, and each class needs rows",
            fix="check the labels, data.classes and data.limit (the first data.limit rows may lack "
            "a class)",
        )
    return counts


def too_few_rows_error(
    counts: np.ndarray, class_names: tuple[str, ...], where: str | None = None
) -> UserError:
    """Create a UserError: there are too few rows to put each class into each split."""
    sizes = list_first(f"{name} {n:,}" for name, n in zip(class_names, counts, strict=True))
    return UserError(
        f"too few rows to put each class into train, val and test; rows per class: {sizes}",
        where=where,
        fix="use more rows (data.limit), increase data.test_size and data.val_size, "
        "or merge or remove the rare classes",
    )


def group_linked_rows(*keys: Sequence[Hashable | None]) -> np.ndarray:
    """Return the group number of each row, (N,); linked rows have the same number.

    Two rows are linked if they have the same key, or if both are linked to a third row.

    Args:
        keys: sequences (N,) with one key per row. A key is compared only with other keys of the
            same sequence. The key None links a row to no other row.
    """
    size = len(keys[0])
    rows, nodes, first = [], [], size
    for values in keys:
        # The appended None keeps NumPy from making a 2-D array of keys that are tuples.
        codes, names = pd.factorize(np.array([*values, None], dtype=object)[:-1])
        # `factorize` returns the code -1 for None.
        known = codes >= 0
        rows.append(np.flatnonzero(known))
        # Each sequence has its own nodes, so keys of different sequences never match.
        nodes.append(codes[known] + first)
        first += len(names)
    row, node = np.concatenate(rows), np.concatenate(nodes)
    # The nodes of the graph are the rows, then the distinct keys. Edges connect rows and keys.
    graph = coo_array((np.ones(len(row), dtype=bool), (row, node)), shape=(first, first))
    _, components = connected_components(graph, directed=False)
    return pd.factorize(components[:size])[0]


def group_rows(frame: pd.DataFrame, near: np.ndarray, kind: str) -> np.ndarray:
    """Return group numbers (N,) for rows that should be in the same split.

    Near-duplicates are in the same group. In a split by film or author, rows with the same film or
    author are also in the same group.

    Args:
        near: near-duplicate group number of each row, (N,).
        kind: one of SPLITS.

    Raises:
        UserError: the column for a split by film or author is missing or empty.
    """
    if kind not in GROUPED:
        return near
    _check_column(frame, kind, kind)
    names = [fold_name(name) for name in frame[kind]]
    # If no name is known, each row would be a group by itself, as in a random split.
    if not any(names):
        raise UserError(
            f"data.split={kind} is not possible, because the column '{kind}' is empty",
            fix=f"fill the column '{kind}', or choose another data.split",
        )
    if unnamed := names.count(None):
        log.info("%d of %d rows have no %s, so each is a separate group", unnamed, len(frame), kind)
    return group_linked_rows(names, near.tolist())


def split_rows(
    frame: pd.DataFrame, groups: np.ndarray, class_names: tuple[str, ...], kind: str, shares: Shares
) -> Parts:
    """Return the positions in `frame` of the train rows, the validation rows and the test rows.

    Without folds, a random split is made by `split_randomly`, which repeats the splits of the
    study that this project started from. Such a random split and a predefined split may put
    near-duplicates into different splits. All other kinds keep near-duplicates together.

    Args:
        frame: frame with the columns label and place, and the column that the split rule needs.
        groups: result of `group_rows`.
        kind: one of SPLITS.

    Raises:
        UserError: a column is missing, or a split would have no row of some class.
    """
    labels = frame["label"].to_numpy()
    if kind == "random" and shares.folds is None:
        return split_randomly(labels, class_names, shares)
    check_classes(labels, class_names)
    if kind == PREDEFINED:
        parts = _split_by_column(frame)
    else:
        parts = _split_by_rule(frame, groups, class_names, kind, shares)
    for name, part in zip(PARTS, parts, strict=True):
        counts = np.bincount(labels[part], minlength=len(class_names))
        if counts.min() == 0:
            raise UserError(
                f"data.split={kind} puts {len(part):,} rows into {name}, but none of them has the "
                f"label '{class_names[counts.argmin()]}'",
                fix="assign rows of this class to each split in data.split_column"
                if kind == PREDEFINED
                else "use more rows, or another data.split_seed, data.fold or data.split",
            )
    return parts


def _split_by_rule(
    frame: pd.DataFrame, groups: np.ndarray, class_names: tuple[str, ...], kind: str, shares: Shares
) -> Parts:
    column, build_rule = RULES[kind]
    _check_column(frame, column, kind)
    # Each split, or each fold, gets at least one whole group.
    least, found = max(len(PARTS), shares.folds or 0), len(np.unique(groups))
    if kind in GROUPED and found < least:
        raise UserError(
            f"data.split={kind} needs at least {least} groups of reviews, but there are {found}; "
            f"reviews with the same {kind}, and near-duplicates, are one group",
            where=f"column '{kind}'",
            fix="use more rows (data.limit), fewer data.folds, or another data.split",
        )
    rule = build_rule(frame, groups, shares.seed)
    rows = np.arange(len(frame))
    try:
        if shares.folds is None:
            test = rule.hold_out(rows, shares.test_size)
        else:
            test = rule.folds(shares.folds)[shares.fold or 0]
        # `setdiff1d` returns sorted positions, as the rules expect.
        rest = np.setdiff1d(rows, test)
        val = rule.hold_out(rest, shares.val_size)
    except ValueError as error:
        # There are fewer groups, or fewer rows of a class, than splits or folds.
        counts = np.bincount(frame["label"], minlength=len(class_names))
        raise too_few_rows_error(counts, class_names, f"data.split={kind}: {error}") from error
    return np.setdiff1d(rest, val), val, test


def _check_column(frame: pd.DataFrame, column: str, kind: str) -> None:
    if column not in frame:
        raise UserError(
            f"data.split={kind} needs a column '{column}', but the data has none",
            where=f"columns {', '.join(map(str, frame.columns.drop('place')))}",
            fix=f"rename a column of the file to '{column}', or choose another data.split",
        )


def _split_by_column(frame: pd.DataFrame) -> Parts:
    _check_column(frame, "part", PREDEFINED)
    # A missing value becomes "", which is reported as an unknown split.
    folded = frame["part"].fillna("").astype(str).str.casefold()
    parts = folded.replace(_ALIASES)
    unknown = ~parts.isin(PARTS)
    if unknown.any():
        name = str(folded[unknown].iloc[0])
        raise UserError(
            f"{unknown.sum():,} of {len(frame):,} rows have an unknown split, such as '{name}': "
            f"{suggest_name(name, (*PARTS, *_ALIASES))}",
            where=list_first(frame.loc[unknown, "place"]),
            fix="write train, val or test for each row in data.split_column",
        )
    missing = [name for name in PARTS if name not in set(parts)]
    if missing:
        raise UserError(
            f"no row is assigned to {' or '.join(missing)}",
            where="data.split_column",
            fix="assign rows to each of the three splits train, val and test",
        )
    train, val, test = (np.flatnonzero(parts == name) for name in PARTS)
    return train, val, test
