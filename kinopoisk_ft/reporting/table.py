"""Rows → tables: one for each data set and split."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace

from kinopoisk_ft.reporting.columns import BEST, MAJORITY_COLUMNS, MARKS
from kinopoisk_ft.reporting.locale import NOTHING, Words, time_digits
from kinopoisk_ft.reporting.run_rows import Row, rows_of
from kinopoisk_ft.reporting.runs import TrainedRun
from kinopoisk_ft.statistics.comparison import Approach, Comparison, compare
from kinopoisk_ft.statistics.pairs import Pair
from kinopoisk_ft.statistics.predictions import Predictions
from kinopoisk_ft.statistics.slices import NO_GRADE, SEEN, Slice


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows on the same test reviews, best F1 first; `best` maps a column to its best mean.

    `comparison` is what the rows' predictions say; its approaches have the rows' names.
    """

    data: str
    split_digest: str
    source_digest: str
    rows: tuple[Row, ...]
    best: dict[str, float]
    majority: dict[str, float]
    majority_differs: bool
    comparison: Comparison

    def holder(self, column: str) -> Row | None:
        """Return the row that holds the best value of a column."""
        return next((row for row in self.rows if row.from_best.get(column) == 0), None)


def tables(runs: list[TrainedRun], predictions: Mapping[str, Predictions]) -> list[Table]:
    """Return one table for each data set and split, in the order of their names.

    `predictions` are by run id; a run without them has a score and no interval.
    """
    groups: dict[tuple[str, str, str], list[TrainedRun]] = defaultdict(list)
    for run in runs:
        groups[(run.data, run.source_digest, run.split_digest)].append(run)
    return [_table(key, groups[key], predictions) for key in sorted(groups)]


def _table(
    key: tuple[str, str, str], runs: list[TrainedRun], predictions: Mapping[str, Predictions]
) -> Table:
    rows = rows_of(runs)
    best = {}
    for column, better in BEST.items():
        means = [row.values[column].mean for row in rows if column in row.values]
        if means:
            best[column] = better(means)
    rows = [
        replace(row, from_best={c: row.values[c].mean - best[c] for c in best if c in row.values})
        for row in rows
    ]
    rows.sort(key=lambda row: (-row.values["f1_weighted"].mean, row.name))
    majority, differs = _majority(runs)
    data, source_digest, split_digest = key
    return Table(
        data=data,
        split_digest=split_digest,
        source_digest=source_digest,
        rows=tuple(rows),
        best=best,
        majority=majority,
        majority_differs=differs,
        comparison=compare([_approach(row, predictions) for row in rows]),
    )


def _approach(row: Row, predictions: Mapping[str, Predictions]) -> Approach:
    return Approach(
        name=row.name,
        seeds=tuple(run.seed for run in row.runs),
        runs=tuple(predictions.get(run.run_id) for run in row.runs),
        temperatures=tuple(run.metrics.get("temperature") for run in row.runs),
    )


def _majority(runs: list[TrainedRun]) -> tuple[dict[str, float], bool]:
    """Return the majority class's scores and whether runs of one split disagree on them."""
    seen = {
        column: {round(run.metrics[metric], 9) for run in runs if metric in run.metrics}
        for column, metric in MAJORITY_COLUMNS.items()
    }
    scores = {
        c: next(r.metrics[m] for r in runs if m in r.metrics)
        for c, m in MAJORITY_COLUMNS.items()
        if seen[c]
    }
    return scores, any(len(values) > 1 for values in seen.values())


DIGEST_CHARACTERS = 12
SCORES = ("accuracy", "f1_weighted", "f1_macro")
TIMES = ("train_seconds", "eval_seconds")
COUNTS = ("total_parameters", "tokens_per_second", "peak_memory_mb")
CHARACTERS_SEEN = "characters_seen_share"
SIZES = (*COUNTS, CHARACTERS_SEEN, "max_length")


def data_line(table: Table, words: Words) -> str:
    """Return which data, split and test rows a table is about."""
    rules = sorted({row.setting("data.split") for row in table.rows} - {""})
    rule = words("split_rule", rule=words.listed(rules)) if rules else ""
    digest = table.split_digest[:DIGEST_CHARACTERS]
    return words("data", data=table.data, rule=rule, digest=digest)


def results(table: Table, words: Words) -> list[list[str]]:
    """Return what was measured: mean ± deviation over n seeds [interval]; majority class last."""
    columns = ["approach", "n", *SCORES, *TIMES, "trainable_parameters"]
    rows = [[words.header(column) for column in columns]]
    for row in table.rows:
        scores = [_score(table, row, column, words) for column in SCORES]
        times = [spread_text(row, c, _time_digits(row, c), words) for c in TIMES]
        trained = whole_text(row, "trainable_parameters", words)
        rows.append([row.name, str(len(row.runs)), *scores, *times, trained])
    floor = [words.score(table.majority[c]) if c in table.majority else NOTHING for c in SCORES]
    rest = [NOTHING] * (len(columns) - 2 - len(SCORES))
    rows.append([words("majority"), NOTHING, *floor, *rest])
    return rows


def sizes(table: Table, words: Words) -> list[list[str]]:
    """Return how large and how fast each row is, and how much of the reviews it read."""
    rows = [[words.header(column) for column in ("approach", *SIZES)]]
    for row in table.rows:
        counts = [whole_text(row, column, words) for column in COUNTS]
        rows.append([row.name, *counts, seen_text(row, words), row.first.max_length or NOTHING])
    return rows


def whole_text(row: Row, column: str, words: Words) -> str:
    """Return a mean without digits after the point."""
    mean = row.mean(column)
    return NOTHING if mean is None else words.number(mean, 0)


def seen_text(row: Row, words: Words) -> str:
    """Return the share of the characters that the row's model read."""
    share = row.mean(CHARACTERS_SEEN)
    return NOTHING if share is None else words.percent(share)


def against_best(table: Table, words: Words) -> list[list[str]]:
    """Return the marks and the signed distances from the best values."""
    columns = ["approach", *MARKS, *(f"{column}_from_best" for column in BEST)]
    rows = [[words.header(column) for column in columns]]
    for row in table.rows:
        marks = [words("yes" if row.marked(mark) else "no") for mark in MARKS]
        rows.append([row.name, *marks, *(_distance(row, c, words) for c in BEST)])
    floor = {c: table.majority[c] - best for c, best in table.best.items() if c in table.majority}
    distances = [words.score(floor[c], signed=True) if c in floor else NOTHING for c in BEST]
    rows.append([words("majority"), *[words("no")] * len(MARKS), *distances])
    return rows


def _score(table: Table, row: Row, column: str, words: Words) -> str:
    text = spread_text(row, column, 4, words)
    interval = table.comparison.means.get(row.name, {}).get(column)
    return f"{text} {words.interval(interval)}" if interval else text


def _time_digits(row: Row, column: str) -> int:
    return time_digits(row.mean(column) or 0.0)


def spread_text(row: Row, column: str, digits: int, words: Words) -> str:
    """Return mean ± standard deviation, the mean alone of one seed."""
    spread = row.values.get(column)
    if spread is None:
        return NOTHING
    mean = words.number(spread.mean, digits)
    return mean if spread.std is None else f"{mean} ± {words.number(spread.std, digits)}"


def _distance(row: Row, column: str, words: Words) -> str:
    if column not in row.from_best:
        return NOTHING
    write = words.seconds if column in TIMES else words.score
    return write(row.from_best[column], signed=True)


DIFFERENCES = ("f1_weighted", "accuracy", "f1_macro")
CALIBRATION = (
    "temperature", "ece", "ece_calibrated", "brier", "brier_calibrated", "nll", "nll_calibrated",
)  # fmt: skip
THRESHOLD = ("threshold", "f1_weighted_threshold", "accuracy_threshold")
SLICE_SCORES = ("accuracy", "f1_weighted")


def differences(table: Table, words: Words) -> list[list[str]]:
    """Return a row a pair: differences with intervals and p-values; without pairs, no rows."""
    if not table.comparison.pairs:
        return []
    heading = [words("approach"), words("against")]
    for metric in DIFFERENCES:
        heading += [words("difference", metric=words(metric)), words("p"), words("p_holm")]
    heading += [words("mcnemar"), words("mcnemar_holm")]
    return [heading, *(_difference(pair, words) for pair in table.comparison.pairs)]


def _difference(pair: Pair, words: Words) -> list[str]:
    cells = [pair.a, pair.b if pair.paired else words("unpaired_mark", name=pair.b)]
    for metric in DIFFERENCES:
        found = pair.differences[metric]
        text = f"{words.score(found.mean, signed=True)} {words.interval(found, signed=True)}"
        cells += [text, words.p_value(found.p), words.p_value(found.p_holm)]
    test = pair.mcnemar
    ps = (test.p, test.p_holm) if test else (None, None)
    return [*cells, *(NOTHING if p is None else words.p_value(p) for p in ps)]


def calibration(table: Table, words: Words) -> list[list[str]]:
    """Return each approach's calibration, before and after its temperature; no rows if unknown."""
    rows = [row for row in table.rows if "temperature" in row.values]
    if not rows:
        return []
    columns = [*CALIBRATION]
    if any("threshold" in row.values for row in rows):
        columns += THRESHOLD
    heading = [words("approach"), *(words.header(column) for column in columns)]
    cells = [[row.name, *(spread_text(row, c, 4, words) for c in columns)] for row in rows]
    return [heading, *cells]


def slices(table: Table, score: str, words: Words) -> list[list[str]]:
    """Return one score on each slice, a column an approach, with its interval; no rows if none."""
    found = table.comparison.slices
    names = [row.name for row in table.rows if row.name in found]
    cells: dict[tuple[int, float], dict[str, Slice]] = defaultdict(dict)
    for name in names:
        for one in found[name]:
            cells[one.place][name] = one
    if not cells:
        return []
    rows = [[words("slice"), words("reviews"), *names]]
    for _, here in sorted(cells.items()):
        counts = sorted({one.n for one in here.values()})
        written = [_slice_score(here.get(name), score, words) for name in names]
        rows.append([_kind(next(iter(here.values())), words), _counts(counts, words), *written])
    return rows


def _kind(one: Slice, words: Words) -> str:
    """Say what reviews a slice is of."""
    if one.by == "grade10" and one.value == NO_GRADE:
        return words("no_grade")
    shown = words(one.value) if one.value in SEEN else words.range(one.value)
    return f"{words(f'by_{one.by}')}: {shown}"


def _slice_score(one: Slice | None, score: str, words: Words) -> str:
    if one is None:
        return NOTHING
    interval = one.accuracy if score == "accuracy" else one.f1_weighted
    return f"{words.number(interval.mean, 3)} {words.interval(interval, digits=3)}"


def _counts(counts: list[int], words: Words) -> str:
    """Write how many reviews a slice has; a model's own truncation makes it differ."""
    ends = dict.fromkeys((counts[0], counts[-1]))
    return words.range("-".join(words.number(n, 0) for n in ends))
