"""The options of a data recipe, checked before anything is read."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from kinopoisk_ft.data.partition import PREDEFINED, SPLITS
from kinopoisk_ft.data.quoting import QUOTING
from kinopoisk_ft.data.truncation import TRUNCATIONS
from kinopoisk_ft.errors import UserError, nearest

_NAMES: dict[str, Iterable[str]] = {
    "empty": ("drop", "refuse"),
    "near_duplicates": ("drop", "keep"),
    "split": SPLITS,
    "truncation": TRUNCATIONS,
    "quoting": QUOTING,
}


def check_options(recipe: Any) -> None:
    """Raise UserError for an option that is out of range or goes with no other."""
    for name, valid in _NAMES.items():
        # Only recipes that read tables have `quoting`.
        if (value := getattr(recipe, name, None)) is not None and value not in valid:
            raise invalid(name, value, nearest(str(value), valid))
    for name in ("limit", "max_length", "max_characters"):
        value = getattr(recipe, name)
        if value is not None and value < 1:
            raise invalid(name, value, "give a positive number")
    for name in ("test_size", "val_size"):
        if not 0 < getattr(recipe, name) < 1:
            raise invalid(name, getattr(recipe, name), "give a share between 0 and 1, as 0.2")
    _check_folds(recipe.split, recipe.folds, recipe.fold)
    if (recipe.split == PREDEFINED) != (recipe.split_column is not None):
        fix = "give data.split=predefined and data.split_column=<column>, both or neither"
        raise invalid("split_column", recipe.split_column, fix, f" with data.split={recipe.split}")


def _check_folds(split: str, folds: int | None, fold: int | None) -> None:
    if folds is None and fold is not None:
        raise invalid("fold", fold, "give data.folds too, as data.folds=5", " without data.folds")
    if folds is None:
        return
    if folds < 2:
        raise invalid("folds", folds, "give 2 or more, or null for no folds")
    if split == PREDEFINED:
        fix = "a column that names the parts leaves no fold to choose: give data.folds=null"
        raise invalid("folds", folds, fix, f" with data.split={split}")
    if fold is None or not 0 <= fold < folds:
        fix = f"give the fold that tests, from 0 to {folds - 1}; a sweep takes all: "
        fix += f"-m data.fold={','.join(map(str, range(min(folds, 5))))}" + ",…" * (folds > 5)
        raise invalid("fold", fold, fix, f" with data.folds={folds}")


def invalid(name: str, value: object, fix: str, why: str = "") -> UserError:
    """Return the error for a value that an option of `data` cannot have."""
    return UserError(f"{name} cannot be {value!r}{why}", where=f"data.{name}", fix=fix)
