"""What rows must share to stand on an equal footing: what they read, and their budgets."""

from __future__ import annotations

from collections.abc import Sequence

from kinopoisk_ft.reporting.rows import Row

# Of the baseline as well: which texts there are.
TEXTS = ("data.strip_scores", "data.max_characters")
# The study's differed in the first two.
BUDGET = (
    "data.max_length", "trainer.epochs", "data.truncation", "trainer.budget", "trainer.max_steps",
    "trainer.batch_size", "trainer.eval_every", "trainer.patience", "trainer.class_weights",
    "trainer.sampling",
)  # fmt: skip
SEARCH = "search"  # no setting: which other configs were tried before this one was chosen
# Of each run, whatever its settings: `auto` takes what the machine has.
OF_RUNS = ("device", "precision")
FOOTING = (*TEXTS, *BUDGET, SEARCH, *OF_RUNS)
LIMITS = ("trainer.epochs", "trainer.max_steps")  # overruled by trainer.budget


def part(row: Row, key: str) -> str:
    """Return what a row has of a key of `FOOTING`, "" where it has nothing of the kind.

    Where its runs differ, as on several machines, that is all they have: "bf16, fp32".
    """
    if key in OF_RUNS:
        return ", ".join(sorted({getattr(run, key) for run in row.runs}))
    if key == SEARCH:
        return row.searched
    if key in LIMITS and row.setting("trainer.budget"):
        return ""
    found = row.setting(key)
    if key == "trainer.batch_size" and found:
        return str(int(found) * int(row.setting("trainer.accumulate") or 1))
    return found


def unequal(rows: Sequence[Row]) -> dict[str, list[tuple[str, str]]]:
    """Return the keys in which rows or their runs differ, with (name, part) of each row.

    The baseline is fitted in one go: it has texts, and no budget.
    """
    found = {}
    for key in FOOTING:
        parts = [(row.name, part(row, key)) for row in rows if row.is_network or key in TEXTS]
        mixed = key in OF_RUNS and any("," in value for _, value in parts)
        if mixed or len({value for _, value in parts}) > 1:
            found[key] = parts
    return found
