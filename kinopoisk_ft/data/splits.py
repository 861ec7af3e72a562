"""Which rows train, validate and test."""

from __future__ import annotations

import hashlib

import numpy as np
from sklearn.model_selection import train_test_split

from kinopoisk_ft.errors import UserError

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
