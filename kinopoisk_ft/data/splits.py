"""The split by name: at random, by film, author or date, or as a column says; and folds of each."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from sklearn.model_selection import train_test_split

from kinopoisk_ft.data.cleaning import shown
from kinopoisk_ft.data.split_rules import ByChance, ByDate, ByGroup, Rule
from kinopoisk_ft.errors import UserError, suggest_name
from kinopoisk_ft.text import fold_name

Parts = tuple[np.ndarray, np.ndarray, np.ndarray]


def random_split(
    labels: np.ndarray,
    *,
    class_names: tuple[str, ...],
    test_size: float,
    val_size: float,
    seed: int,
) -> Parts:
    """Split rows at random, stratified by label, into positions of train, validation and test.

    Two calls of scikit-learn's `train_test_split`: `test_size` of all rows, then `val_size` of the
    rest. Raises UserError where some part would miss a class.
    """
    counts = check_classes(labels, class_names)
    try:
        rest, test = train_test_split(
            np.arange(len(labels)), test_size=test_size, random_state=seed, stratify=labels
        )
        train, val = train_test_split(
            rest, test_size=val_size, random_state=seed, stratify=labels[rest]
        )
    except ValueError as error:  # a part with fewer rows than classes, a class with one row
        raise too_few(counts, class_names) from error
    for part in (train, val, test):
        if np.bincount(labels[part], minlength=len(counts)).min() == 0:
            raise too_few(counts, class_names)
    return train, val, test


def digest_rows(train: np.ndarray, val: np.ndarray, test: np.ndarray) -> str:
    """Return the SHA-256, in hex, of the row ids of each part in their order."""
    digest = hashlib.sha256()
    for name, rows in (("train", train), ("val", val), ("test", test)):
        digest.update(f"{name} {len(rows)}\n".encode())
        digest.update(np.ascontiguousarray(rows, dtype="<i8").tobytes())
    return digest.hexdigest()


def check_classes(labels: np.ndarray, class_names: tuple[str, ...]) -> np.ndarray:
    """Return the number of rows of each class; raises UserError where a class has none."""
    counts = np.bincount(labels, minlength=len(class_names))
    if counts.min() == 0 or len(counts) < 2:
        absent = [name for name, n in zip(class_names, counts, strict=True) if not n]
        raise UserError(
            f"a classifier needs rows of two classes or more; of {len(labels):,} rows, "
            + (f"none is '{absent[0]}'" if absent else f"all are '{class_names[0]}'"),
            fix="check the label column, data.classes and data.limit: the first rows may lack one",
        )
    return counts


def too_few(
    counts: np.ndarray, class_names: tuple[str, ...], where: str | None = None
) -> UserError:
    """Return the error for classes with so few rows that some part would have none."""
    sizes = ", ".join(f"{name} {n:,}" for name, n in zip(class_names, counts, strict=True))
    return UserError(
        f"too few rows for a split in which every part has every class: {sizes}",
        where=where,
        fix="give more rows (data.limit), larger data.test_size and data.val_size, "
        "or merge or remove the rare classes",
    )


def linked(*keys: Sequence[Hashable | None]) -> np.ndarray:
    """Return group numbers (N,) of rows that share a key, directly or through other rows.

    Args:
        keys: one sequence (N,) for each way of being tied; None ties a row to no other.
    """
    size = len(keys[0])
    rows, nodes, first = [], [], size
    for values in keys:
        codes, names = pd.factorize(np.array([*values, None], dtype=object)[:-1])
        known = codes >= 0
        rows.append(np.flatnonzero(known))
        nodes.append(codes[known] + first)
        first += len(names)
    row, node = np.concatenate(rows), np.concatenate(nodes)
    graph = coo_array((np.ones(len(row), dtype=bool), (row, node)), shape=(first, first))
    _, groups = connected_components(graph, directed=False)
    # Numbers in the order of the rows, without those of keys.
    return pd.factorize(groups[:size])[0]


log = logging.getLogger(__name__)

PARTS = ("train", "val", "test")
PREDEFINED = "predefined"
# The column that a split reads, and the rule made of it.
RULES: dict[str, tuple[str, Callable[[pd.DataFrame, np.ndarray, int], Rule]]] = {
    "random": ("label", ByChance),
    "film": ("film", ByGroup),
    "author": ("author", ByGroup),
    "time": ("date", ByDate),
}
WHOLE = ("film", "author")  # columns whose names a split by them keeps whole
SPLITS = (*RULES, PREDEFINED)
_OTHER_NAMES = {"validation": "val", "valid": "val", "dev": "val"}  # as val is called elsewhere


@dataclass(frozen=True)
class Shares:
    """How much is held out: first for the test, then `val_size` of the rest.

    Args:
        test_size: share of all rows, where `folds` is None.
        folds: into how many parts all rows are cut; the one numbered `fold`, from 0, tests.
    """

    test_size: float
    val_size: float
    seed: int
    folds: int | None = None
    fold: int | None = None


def tied(frame: pd.DataFrame, near: np.ndarray, kind: str) -> np.ndarray:
    """Return group numbers (N,) of the rows that a split keeps on one side.

    These are near-duplicates, and by film or author all rows of one name; a row without a name is
    a film of its own. Raises UserError where there are no names.
    """
    if kind not in WHOLE:
        return near
    _check_column(frame, kind, kind)
    names = [fold_name(name) for name in frame[kind]]
    if not any(names):
        raise UserError(
            f"no row names its {kind}, so data.split={kind} cannot be made",
            fix=f"fill the column '{kind}', or choose another data.split",
        )
    if nameless := names.count(None):
        log.info("%d of %d rows name no %s: each goes alone", nameless, len(frame), kind)
    return linked(names, near.tolist())


def split_rows(
    frame: pd.DataFrame, groups: np.ndarray, class_names: tuple[str, ...], kind: str, shares: Shares
) -> Parts:
    """Return positions of train, validation and test, each sorted but for the random split.

    The random split without folds is the study's, bit for bit, so it alone may part
    near-duplicates; a predefined one is as the user made it. Raises UserError on a missing column,
    and where some part would miss a class.

    Args:
        frame: columns label, place, and the one that the split reads ("part" where predefined).
        groups: those of `tied`.
        kind: one of SPLITS.
    """
    labels = frame["label"].to_numpy()
    if kind == "random" and shares.folds is None:
        sizes = {"test_size": shares.test_size, "val_size": shares.val_size}
        return random_split(labels, class_names=class_names, **sizes, seed=shares.seed)
    check_classes(labels, class_names)
    if kind == PREDEFINED:
        parts = _as_named(frame)
    else:
        parts = _by_rule(frame, groups, class_names, kind, shares)
    for name, part in zip(PARTS, parts, strict=True):
        counts = np.bincount(labels[part], minlength=len(class_names))
        if counts.min() == 0:
            raise UserError(
                f"of the {len(part):,} rows in {name} by data.split={kind}, none is "
                f"'{class_names[counts.argmin()]}'",
                fix="move rows between the parts of data.split_column"
                if kind == PREDEFINED
                else "give more rows, or another data.split_seed, data.fold or data.split",
            )
    return parts


def _by_rule(
    frame: pd.DataFrame, groups: np.ndarray, class_names: tuple[str, ...], kind: str, shares: Shares
) -> Parts:
    column, make = RULES[kind]
    _check_column(frame, column, kind)
    rule = make(frame, groups, shares.seed)
    everything = np.arange(len(frame))
    try:
        if shares.folds is None:
            test = rule.hold_out(everything, shares.test_size)
        else:
            test = rule.folds(shares.folds)[shares.fold or 0]
        rest = np.setdiff1d(everything, test)
        val = rule.hold_out(rest, shares.val_size)
    except ValueError as error:  # fewer films, or rows of a class, than parts
        counts = np.bincount(frame["label"], minlength=len(class_names))
        raise too_few(counts, class_names, f"data.split={kind}: {error}") from error
    return np.setdiff1d(rest, val), val, test


def _check_column(frame: pd.DataFrame, column: str, kind: str) -> None:
    if column not in frame:
        raise UserError(
            f"data.split={kind} needs a column '{column}', which the data lack",
            where=f"columns {', '.join(map(str, frame.columns.drop('place')))}",
            fix=f"name the file's own column '{column}', or choose another data.split",
        )


def _as_named(frame: pd.DataFrame) -> Parts:
    """Return the parts that the column "part" names."""
    _check_column(frame, "part", PREDEFINED)
    folded = frame["part"].map(lambda name: str(name or "").casefold())
    parts = folded.replace(_OTHER_NAMES)
    unknown = ~parts.isin(PARTS)
    if unknown.any():
        name = str(folded[unknown].iloc[0])
        raise UserError(
            f"{unknown.sum():,} of {len(frame):,} rows are in an unknown part, as '{name}': "
            f"{suggest_name(name, (*PARTS, *_OTHER_NAMES))}",
            where=shown(frame.loc[unknown, "place"]),
            fix="name the part of each row train, val or test in data.split_column",
        )
    missing = [name for name in PARTS if name not in set(parts)]
    if missing:
        raise UserError(
            f"no row is in {' nor in '.join(missing)}",
            where="data.split_column",
            fix="name rows of all three parts: train, val and test",
        )
    train, val, test = (np.flatnonzero(parts == name) for name in PARTS)
    return train, val, test
