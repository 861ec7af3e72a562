"""Group runs with equal settings into rows of the report."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from kinopoisk_ft.reporting.columns import COLUMNS, MARKS, MEMORY, TIME, TRAINABLE
from kinopoisk_ft.reporting.runs import BASELINE, TrainedRun

# A row with more distinguishing settings has a number in its name instead of the settings.
SETTINGS_IN_NAME = 2
# Settings that change the review texts. They also apply to the TF-IDF baseline.
TEXTS = ("data.strip_scores", "data.max_characters")
# Settings and fields of runs that the TF-IDF baseline has, too.
OF_TFIDF = (*TEXTS, "device")
# Settings that decide how much text an approach reads and how long it trains.
BUDGET = (
    "data.max_length", "trainer.epochs", "data.truncation", "trainer.budget", "trainer.max_steps",
    "trainer.batch_size", "trainer.eval_every", "trainer.patience", "trainer.class_weights",
    "trainer.sampling", "data.window_stride", "data.max_windows", "trainer.min_steps",
)  # fmt: skip
# This key stands for `TrainedRun.searched`: whether a hyperparameter search found the settings.
SEARCH = "search"
# The value of this key for the trials of a search.
TRIAL = "trial"
# Settings that decide how long an approach trains and how many settings were tried.
BUDGETS = (*(key for key in BUDGET if key.startswith("trainer.")), SEARCH)
# Fields of `TrainedRun`. The settings may contain `auto`, whose meaning depends on the machine.
OF_RUNS = ("device", "precision")
COMPARED = (*TEXTS, *BUDGET, SEARCH, *OF_RUNS)
# Training times are doubtful if the longest exceeds the shortest by this factor. On an idle
# machine, training times with the same settings differ by only a few percent.
DOUBTFUL_RATIO = 1.5
# Usual spelling of adapters, by name of their option.
ADAPTERS = {
    "lora": "LoRA", "dora": "DoRA", "rslora": "rsLoRA", "ia3": "(IA)³", "bitfit": "BitFit",
}  # fmt: skip
RANK = "adapter.config.r"
# Smaller networks have no size in their name.
SMALLEST_NAMED = 100_000
# `trainer.budget` replaces these settings.
LIMITS = ("trainer.epochs", "trainer.max_steps")


@dataclass(frozen=True)
class Spread:
    """A mean over seeds, with the lowest and the highest value.

    `std` is the sample standard deviation (ddof=1), which is None for one seed.
    """

    mean: float
    std: float | None
    low: float
    high: float

    @classmethod
    def of(cls, values: list[float]) -> Spread:
        """Compute the spread of a non-empty list of values."""
        std = statistics.stdev(values) if len(values) > 1 else None
        return cls(statistics.fmean(values), std, min(values), max(values))


@dataclass(frozen=True, kw_only=True)
class Row:
    """The runs of one approach with the same settings.

    Args:
        values: mean, standard deviation and range by column. Columns that no run recorded are
            missing.
        own_settings: settings that distinguish the row from other rows of the same approach.
        from_best: mean minus the best mean of the table, by column; see `Table.best`.
    """

    name: str
    runs: tuple[TrainedRun, ...]
    values: dict[str, Spread]
    own_settings: dict[str, str]
    from_best: dict[str, float]

    @property
    def first(self) -> TrainedRun:
        """Return the first run; all runs of a row have the same model, adapter and settings."""
        return self.runs[0]

    @property
    def is_network(self) -> bool:
        """Return whether the model is a neural network."""
        return self.first.model != BASELINE

    @property
    def learned(self) -> bool:
        """True unless a run has failed a check of `tasks.learned`."""
        return not any(run.not_learned for run in self.runs)

    @property
    def starts_randomly(self) -> bool:
        """Return whether training starts from random weights."""
        # Only configs for training from scratch set a vocabulary size.
        return "model.vocab_size" in self.first.settings

    @property
    def pretrained_on_test(self) -> tuple[float, float] | None:
        """Return the number and the fraction of test reviews that were used for pretraining.

        Both are maxima over the runs. If some runs recorded no number, and the other runs recorded
        only 0, the result is None, because the maximum is unknown.
        """
        keys = ("leakage_pretraining", "leakage_pretraining_share")
        found = [tuple(run.metrics.get(key) for key in keys) for run in self.runs]
        known = [(n, share) for n, share in found if n is not None and share is not None]
        most = max(known, default=(0.0, 0.0))
        return most if most[0] or len(known) == len(found) else None

    @property
    def has_doubtful_times(self) -> bool:
        """Return whether the training times of a network differ by more than `DOUBTFUL_RATIO`.

        Those of TF-IDF may differ more, because the whole training takes only a few seconds.
        """
        times = self.values.get(TIME) if self.is_network else None
        return times is not None and times.high > DOUBTFUL_RATIO * times.low

    def setting(self, key: str) -> str:
        """Return the value of the setting `key`, or "" if it is missing or None."""
        found = self.first.settings.get(key, "")
        return "" if found == "None" else found

    def compared(self, key: str) -> str:
        """Return the value of a setting for comparison with other rows; "" if there is none.

        Args:
            key: name of a setting, or "search", "device" or "precision", which are fields of the
                runs. Several devices or precisions are joined, as in "bf16, fp32".
        """
        if key in OF_RUNS:
            return ", ".join(sorted({getattr(run, key) for run in self.runs}))
        if key == SEARCH:
            return next((run.searched for run in self.runs if run.searched), "")
        if key in LIMITS and self.setting("trainer.budget"):
            return ""
        found = self.setting(key)
        # With gradient accumulation, an optimizer step uses several batches.
        if key == "trainer.batch_size" and found:
            return str(int(found) * int(self.setting("trainer.accumulate") or 1))
        return found

    def mean(self, column: str) -> float | None:
        """Return the mean of a column, or None if no run recorded a value."""
        return self.values[column].mean if column in self.values else None

    def marked(self, mark: str) -> bool:
        """Return whether the row has the best value of a column.

        mark: the `Column.mark` of the column.
        """
        # The difference is exactly 0, because the best value is one of the means.
        return self.learned and self.from_best.get(MARKS[mark]) == 0


def differing_settings(rows: Sequence[Row]) -> dict[str, list[tuple[str, str]]]:
    """Return {setting: [(row name, value)]} for settings that differ between rows or runs.

    The TF-IDF baseline is compared only in `OF_TFIDF`, because all others apply only to networks.
    """
    found = {}
    for key in COMPARED:
        values = [
            (row.name, row.compared(key)) for row in rows if row.is_network or key in OF_TFIDF
        ]
        # A comma means that the runs of one row differ.
        mixed = key in OF_RUNS and any("," in value for _, value in values)
        if mixed or len({value for _, value in values}) > 1:
            found[key] = values
    return found


def with_cost(rows: Sequence[Row], column: str) -> list[Row]:
    """Return the rows whose values in a column can be compared with each other.

    Rows without a value or with doubtful training times are left out. Peak memory is that of the
    process on a CPU, and that of PyTorch on a GPU, so only the rows on one device are returned: the
    one with the most rows.
    """
    found = [row for row in rows if column in row.values]
    if column == TIME:
        return [row for row in found if not row.has_doubtful_times]
    if column == MEMORY and found:
        devices = [row.compared("device") for row in found]
        # Of devices with equally many rows, `max` returns that of the row with the highest score.
        most = max(devices, key=devices.count)
        found = [row for row, device in zip(found, devices, strict=True) if device == most]
    return found


def are_comparable(rows: Sequence[Row], column: str) -> bool:
    """Return whether a cost may decide between rows; times and memory depend on the device."""
    if len(with_cost(rows, column)) < len(rows):
        return False
    return column == TRAINABLE or len({run.device for row in rows for run in row.runs}) == 1


def rows_of(runs: list[TrainedRun]) -> list[Row]:
    """Group runs into rows by approach and settings. `Row.from_best` is left empty."""
    by_approach: dict[str, dict[str, list[TrainedRun]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        by_approach[run.approach][str(run.settings)].append(run)
    rows = []
    for _, recipes in sorted(by_approach.items()):
        groups = list(recipes.values())
        own = _own_settings([group[0].settings for group in groups])
        for number, (group, settings) in enumerate(zip(groups, own, strict=True), start=1):
            # Seeds are strings of digits. Sorting by length first puts 10 after 9.
            group.sort(
                key=lambda run: (
                    len(run.seed), run.seed, len(run.train_seed), run.train_seed, run.run_id,
                )
            )  # fmt: skip
            row = Row(
                name=_name(_title(group), settings, number), runs=tuple(group),
                values=_values(group), own_settings=settings, from_best={},
            )  # fmt: skip
            rows.append(row)
    return rows


def _values(runs: list[TrainedRun]) -> dict[str, Spread]:
    found = {}
    for name, column in COLUMNS.items():
        metric = column.metric or name
        values = [
            run.metrics[metric] + sum(run.metrics.get(key, 0.0) for key in column.charged)
            for run in runs
            if metric in run.metrics
        ]
        # TF-IDF reads no tokens, so its zero tokens per second are not a speed.
        if values and (name != "tokens_per_second" or any(values)):
            found[name] = Spread.of(values)
    return found


def _own_settings(recipes: list[dict[str, str]]) -> list[dict[str, str]]:
    keys = sorted({key for recipe in recipes for key in recipe})
    differing = [k for k in keys if len({recipe.get(k) for recipe in recipes}) > 1]
    return [{k: recipe.get(k, "-") for k in differing} for recipe in recipes]


def _title(runs: Sequence[TrainedRun]) -> str:
    """Return the name of an approach with its size, such as "e5-small-ru 34M + LoRA r=8"."""
    first = runs[0]
    if first.approach.startswith(BASELINE):
        return first.approach.replace(BASELINE, "TF-IDF", 1)
    model, plus, adapter = first.approach.partition(" + ")
    rank = first.settings.get(RANK, "")
    size = first.metrics.get("total_parameters", 0.0)
    if adapter in ADAPTERS:
        # The size is that of the base model, without the parameters of the adapter.
        size -= first.metrics.get("trainable_parameters", 0.0)
    written = f" {write_size(size)}" if size >= SMALLEST_NAMED else ""
    detail = f" r={rank}" if rank and adapter == first.adapter else ""
    return f"{model}{written}{plus}{ADAPTERS.get(adapter, adapter)}{detail}"


def write_size(count: float) -> str:
    """Format the number of parameters of a model with two or three digits, such as 34M or 1.5B."""
    unit, letter = next(
        ((unit, letter) for unit, letter in ((1e9, "B"), (1e6, "M")) if count >= unit), (1e3, "K")
    )
    return f"{count / unit:.{0 if count >= 10 * unit else 1}f}".removesuffix(".0") + letter


def _name(approach: str, own: dict[str, str], number: int) -> str:
    if not own:
        return approach
    if len(own) > SETTINGS_IN_NAME:
        return f"{approach} #{number}"
    short = {key: key.rpartition(".")[2] for key in own}
    # Without its group, model.lr could not be distinguished from trainer.lr.
    if len(set(short.values())) < len(short):
        short = {key: key for key in own}
    # Settings that are not set are left out, so one row may have the plain name of the approach.
    parts = [f"{short[k]}={v}" for k, v in own.items() if v != "None"]
    return f"{approach} ({', '.join(parts)})" if parts else approach
