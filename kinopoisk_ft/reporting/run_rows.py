"""Runs → rows: one for each approach, its runs alike in everything but the seed."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from kinopoisk_ft.reporting.columns import COLUMNS, MARKS, OWED
from kinopoisk_ft.reporting.runs import BASELINE, TrainedRun

SETTINGS_IN_NAME = 2


@dataclass(frozen=True)
class Spread:
    """Mean over n seeds and the standard deviation of one seed (n - 1; None where n = 1)."""

    mean: float
    std: float | None
    n: int

    @classmethod
    def of(cls, values: list[float]) -> Spread:
        """Return the spread of at least one value."""
        std = statistics.stdev(values) if len(values) > 1 else None
        return cls(statistics.fmean(values), std, len(values))


@dataclass(frozen=True, kw_only=True)
class Row:
    """One approach: its runs differ in the seed alone.

    `values` lacks what no run recorded; `from_best` holds the signed distances from the best.
    """

    name: str
    runs: tuple[TrainedRun, ...]
    values: dict[str, Spread]
    own_settings: dict[str, str]  # those that tell it from rows of the same approach
    from_best: dict[str, float]

    @property
    def first(self) -> TrainedRun:
        """Return any one run: model, adapter and settings are those of all."""
        return self.runs[0]

    @property
    def is_network(self) -> bool:
        """Return whether the row is anything but the TF-IDF baseline."""
        return self.first.model != BASELINE

    @property
    def starts_randomly(self) -> bool:
        """Return whether the network starts from random weights: its recipe gives a vocabulary."""
        return "model.vocab_size" in self.first.settings

    @property
    def searched(self) -> str:
        """Return what says that a search chose the recipe, "" where nothing does."""
        return next((run.searched for run in self.runs if run.searched), "")

    def setting(self, key: str) -> str:
        """Return one setting of the row's recipe, "" where it has none."""
        found = self.first.settings.get(key, "")
        return "" if found == "None" else found

    def mean(self, column: str) -> float | None:
        """Return the mean of a column, None where nothing was recorded."""
        return self.values[column].mean if column in self.values else None

    def marked(self, mark: str) -> bool:
        """Return whether the row is the best in the sense of a mark of `MARKS`."""
        return self.from_best.get(MARKS[mark]) == 0


def rows_of(runs: list[TrainedRun]) -> list[Row]:
    """Return a row for each approach and recipe, without their distances from the best."""
    by_approach: dict[str, dict[str, list[TrainedRun]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        by_approach[run.approach][str(run.settings)].append(run)
    rows = []
    for approach, recipes in sorted(by_approach.items()):
        groups = list(recipes.values())
        own = _own_settings([group[0].settings for group in groups])
        for number, (group, settings) in enumerate(zip(groups, own, strict=True), start=1):
            group.sort(key=lambda run: (len(run.seed), run.seed, run.run_id))
            name = _name(approach, settings, number)
            values = _values(group)
            rows.append(
                Row(
                    name=name, runs=tuple(group), values=values, own_settings=settings, from_best={}
                )
            )
    return rows


def _values(runs: list[TrainedRun]) -> dict[str, Spread]:
    found = {
        column: [
            run.metrics[metric] + run.metrics.get(OWED.get(column, ""), 0.0)
            for run in runs
            if metric in run.metrics
        ]
        for column, metric in COLUMNS.items()
    }
    # The baseline reads no tokens, so that none a second says nothing of its speed.
    return {c: Spread.of(v) for c, v in found.items() if v and (c != "tokens_per_second" or any(v))}


def _own_settings(recipes: list[dict[str, str]]) -> list[dict[str, str]]:
    keys = sorted({key for recipe in recipes for key in recipe})
    differing = [k for k in keys if len({recipe.get(k) for recipe in recipes}) > 1]
    return [{k: recipe.get(k, "-") for k in differing} for recipe in recipes]


def _name(approach: str, own: dict[str, str], number: int) -> str:
    """Name a row after its approach, and after what tells it from another of the same name."""
    if not own:
        return approach
    if len(own) > SETTINGS_IN_NAME:
        return f"{approach} #{number}"
    short = {key: key.rpartition(".")[2] for key in own}
    if len(set(short.values())) < len(short):
        short = {key: key for key in own}
    return f"{approach} ({', '.join(f'{short[k]}={v}' for k, v in own.items())})"


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
