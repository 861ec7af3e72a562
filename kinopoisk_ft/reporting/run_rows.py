"""Group runs into rows, one for each approach and recipe, and compare their settings."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from kinopoisk_ft.reporting.columns import COLUMNS, MARKS
from kinopoisk_ft.reporting.runs import BASELINE, TrainedRun

SETTINGS_IN_NAME = 2
# Settings of the texts, which concern the TF-IDF baseline as well.
TEXTS = ("data.strip_scores", "data.max_characters")
BUDGET = (
    "data.max_length", "trainer.epochs", "data.truncation", "trainer.budget", "trainer.max_steps",
    "trainer.batch_size", "trainer.eval_every", "trainer.patience", "trainer.class_weights",
    "trainer.sampling",
)  # fmt: skip
# Not a setting of the run: which search tried other configs before this one was chosen.
SEARCH = "search"
# Facts of each run, whatever its settings: the setting `auto` takes what the machine has.
OF_RUNS = ("device", "precision")
COMPARED = (*TEXTS, *BUDGET, SEARCH, *OF_RUNS)
# trainer.budget overrules these.
LIMITS = ("trainer.epochs", "trainer.max_steps")


@dataclass(frozen=True)
class Spread:
    """Mean over n seeds and the standard deviation of one seed (n - 1; None if n is 1)."""

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
    """One approach; its runs differ only in the seed.

    Args:
        values: by column; a column that no run recorded is missing.
        own_settings: those that tell the row from other rows of the same approach.
        from_best: signed distances from the best row, by column.
    """

    name: str
    runs: tuple[TrainedRun, ...]
    values: dict[str, Spread]
    own_settings: dict[str, str]
    from_best: dict[str, float]

    @property
    def first(self) -> TrainedRun:
        """Return one run: model, adapter and settings are the same for all of them."""
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
    def pretrained_on_test(self) -> tuple[float, float] | None:
        """Return the largest number of test reviews, and their share, that a base was trained on.

        None if a run does not say, and no other run says that there are any.
        """
        keys = ("leakage_pretraining", "leakage_pretraining_share")
        found = [tuple(run.metrics.get(key) for key in keys) for run in self.runs]
        known = [(n, share) for n, share in found if n is not None and share is not None]
        most = max(known, default=(0.0, 0.0))
        return most if most[0] or len(known) == len(found) else None

    def setting(self, key: str) -> str:
        """Return one setting of the row's recipe, "" if it has none."""
        found = self.first.settings.get(key, "")
        return "" if found == "None" else found

    def compared(self, key: str) -> str:
        """Return the row's value of a key of `COMPARED`, "" if it has none.

        If its runs differ, for example on several machines, all values are listed: "bf16, fp32".
        """
        if key in OF_RUNS:
            return ", ".join(sorted({getattr(run, key) for run in self.runs}))
        if key == SEARCH:
            return next((run.searched for run in self.runs if run.searched), "")
        if key in LIMITS and self.setting("trainer.budget"):
            return ""
        found = self.setting(key)
        if key == "trainer.batch_size" and found:
            return str(int(found) * int(self.setting("trainer.accumulate") or 1))
        return found

    def mean(self, column: str) -> float | None:
        """Return the mean of a column, None if nothing was recorded."""
        return self.values[column].mean if column in self.values else None

    def marked(self, mark: str) -> bool:
        """Return whether the row has the best value of the column that a mark belongs to."""
        return self.from_best.get(MARKS[mark]) == 0


def differing_settings(rows: Sequence[Row]) -> dict[str, list[tuple[str, str]]]:
    """Return the keys in which rows or their runs differ, with (name, value) of each row.

    The baseline is fitted in one pass without a budget, so that only settings of texts concern it.
    """
    found = {}
    for key in COMPARED:
        values = [(row.name, row.compared(key)) for row in rows if row.is_network or key in TEXTS]
        mixed = key in OF_RUNS and any("," in value for _, value in values)
        if mixed or len({value for _, value in values}) > 1:
            found[key] = values
    return found


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
            row = Row(
                name=_name(approach, settings, number),
                runs=tuple(group),
                values=_values(group),
                own_settings=settings,
                from_best={},
            )
            rows.append(row)
    return rows


def _values(runs: list[TrainedRun]) -> dict[str, Spread]:
    found = {}
    for name, column in COLUMNS.items():
        metric = column.metric or name
        values = [
            run.metrics[metric] + run.metrics.get(column.charged, 0.0)
            for run in runs
            if metric in run.metrics
        ]
        # The baseline reads no tokens, so that zero tokens per second is not its speed.
        if values and (name != "tokens_per_second" or any(values)):
            found[name] = Spread.of(values)
    return found


def _own_settings(recipes: list[dict[str, str]]) -> list[dict[str, str]]:
    keys = sorted({key for recipe in recipes for key in recipe})
    differing = [k for k in keys if len({recipe.get(k) for recipe in recipes}) > 1]
    return [{k: recipe.get(k, "-") for k in differing} for recipe in recipes]


def _name(approach: str, own: dict[str, str], number: int) -> str:
    """Name a row after its approach, and after the settings that other rows of it do not share."""
    if not own:
        return approach
    if len(own) > SETTINGS_IN_NAME:
        return f"{approach} #{number}"
    short = {key: key.rpartition(".")[2] for key in own}
    if len(set(short.values())) < len(short):
        short = {key: key for key in own}
    return f"{approach} ({', '.join(f'{short[k]}={v}' for k, v in own.items())})"
