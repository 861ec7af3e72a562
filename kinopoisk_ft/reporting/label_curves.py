"""Show how scores depend on the number of training labels, and where two curves cross."""

from __future__ import annotations

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from kinopoisk_ft.reporting.frames import frame_of
from kinopoisk_ft.reporting.locale import NOTHING, Locale
from kinopoisk_ft.reporting.run_rows import COMPARED, Row
from kinopoisk_ft.reporting.table import Table, write_limit
from kinopoisk_ft.statistics.label_curve import (
    Crossing,
    Curve,
    draw_curves,
    estimate_gain,
    find_crossings,
)
from kinopoisk_ft.statistics.predictions import Predictions

# The report estimates how much the score would rise with this many more labels.
MORE = 500
LIMIT = "data.train_limit"

# One point of a curve: data.train_limit, the mean number of labels, and for each seed its name and
# predictions.
Runs = tuple[str, float, tuple[str, ...], list[Predictions]]


@dataclass(frozen=True, kw_only=True)
class LabelCurves:
    """The curves of the approaches with the same data and test reviews.

    Args:
        stem: file name of the figure without suffix.
        tables: the tables of these approaches, one for each number of labels.
        baselines: names of the approaches that are not neural networks.
        differing: settings that differ between the points of a curve, such as `trainer.min_steps`.
    """

    stem: str
    tables: list[Table]
    curves: list[Curve]
    crossings: list[Crossing]
    baselines: frozenset[str]
    differing: tuple[str, ...]


def label_curves(
    tables: Sequence[Table], predictions: Mapping[str, Predictions]
) -> list[LabelCurves]:
    """Return the curves of the approaches that were trained with several numbers of labels."""
    found: list[LabelCurves] = []
    # `groupby` joins only neighbours, and `tables` returns the tables of one split in sequence.
    for _, group in itertools.groupby(tables, lambda t: (t.data, t.source_digest, t.split_digest)):
        same_split = list(group)
        recipes = _find_recipes(same_split)
        rows = [row for table in same_split for row in table.rows]
        names = _name_curves(rows, recipes)
        runs = _collect(same_split, predictions, recipes)
        if runs:
            curves = draw_curves({names[recipe]: points for recipe, points in runs.items()})
            found.append(
                LabelCurves(
                    stem=f"labels-{len(found) + 1}",
                    tables=same_split,
                    curves=curves,
                    crossings=find_crossings(curves),
                    baselines=frozenset(
                        names[recipes[row.first.run_id]] for row in rows if not row.is_network
                    ),
                    differing=_find_differing(rows, recipes),
                )
            )
    return found


def _find_recipes(tables: Sequence[Table]) -> dict[str, str]:
    """Return {run id of the first run of a row: key}. Rows with equal keys are on the same curve.

    The key is the approach. If a table compares several settings of the approach, the key also
    contains the settings. Otherwise, they are left out: they may depend on the number of labels.
    """
    repeated = {
        approach
        for table in tables
        for approach, count in Counter(row.first.approach for row in table.rows).items()
        if count > 1
    }
    found = {}
    for run in (row.first for table in tables for row in table.rows):
        settings = {k: v for k, v in run.settings.items() if k != LIMIT}
        found[run.run_id] = str((run.approach, settings if run.approach in repeated else {}))
    return found


def _name_curves(rows: Iterable[Row], recipes: Mapping[str, str]) -> dict[str, str]:
    """Return {key of `_find_recipes`: name of the curve}, the name of its first row.

    Each table names its rows by the settings that differ in this table, so two recipes may have
    the same name. The second one gets a number.
    """
    names: dict[str, str] = {}
    for row in rows:
        tried = itertools.chain([row.name], (f"{row.name} [{i}]" for i in itertools.count(2)))
        free = next(name for name in tried if name not in names.values())
        names.setdefault(recipes[row.first.run_id], free)
    return names


def _find_differing(rows: Sequence[Row], recipes: Mapping[str, str]) -> tuple[str, ...]:
    keys = [recipes[row.first.run_id] for row in rows]
    found = []
    for setting in COMPARED:
        variants = set(zip(keys, (row.compared(setting) for row in rows), strict=True))
        if len(variants) > len(set(keys)):
            found.append(setting)
    return tuple(found)


def _collect(
    tables: Sequence[Table], predictions: Mapping[str, Predictions], recipes: Mapping[str, str]
) -> dict[str, list[Runs]]:
    """Return {key of `_find_recipes`: points}, without keys that have only one point."""
    found: dict[str, list[Runs]] = {}
    first: Predictions | None = None
    for table in tables:
        # All approaches get the same mean, even if some seeds are missing.
        labels = table.train_reviews
        if labels is None:
            continue
        for row in table.rows:
            answers = [predictions[r.run_id] for r in row.runs if r.run_id in predictions]
            first = first or next(iter(answers), None)
            # All points of all curves are scored on the same resamples of the same test reviews.
            same = first is not None and not any(first.mismatch(answer) for answer in answers)
            if same and len(answers) == len(row.runs):
                seeds = tuple(run.repetition for run in row.runs)
                point = (table.train_limit, labels, seeds, answers)
                found.setdefault(recipes[row.first.run_id], []).append(point)
    return {recipe: points for recipe, points in found.items() if len(points) > 1}


def sentences(found: LabelCurves, locale: Locale) -> list[str]:
    """Return sentences on how many labels an approach needs to score higher than another one.

    If there are baselines, only comparisons with a baseline are described. The last sentences name
    the undecided comparisons, the points with one seed, the approaches that have not learned
    (`Row.learned`), and the settings in which the runs differ.
    """
    compared = [c for c in found.crossings if {c.a, c.b} & found.baselines] or found.crossings
    # Such an interval contains every number of labels.
    undecided = [c for c in compared if c.low == 0 and math.isinf(c.high)]
    said = [_describe(c, found, locale) for c in compared if c not in undecided]
    if undecided:
        pairs = "; ".join(locale("crossing_pair", a=c.a, b=c.b) for c in undecided)
        said.append(locale("crossing_undecided", pairs=pairs))
    said += _describe_single_seeds(found, locale) + _describe_unlearned(found, locale)
    if found.differing:
        said.append(
            locale("curves_differ", names=locale.listed([locale(key) for key in found.differing]))
        )
    return said


def _describe_single_seeds(found: LabelCurves, locale: Locale) -> list[str]:
    # {number of labels: names of curves}.
    single: dict[float, list[str]] = defaultdict(list)
    for curve in found.curves:
        for point in curve.points:
            if len(point.seeds) == 1:
                single[point.labels].append(curve.name)
    points = []
    for labels, names in sorted(single.items()):
        listed = locale("everyone") if len(names) == len(found.curves) else ", ".join(names)
        points.append(f"{locale.number(labels, 0)} ({listed})")
    return [locale("points_one_seed", points="; ".join(points))] if points else []


def _describe_unlearned(found: LabelCurves, locale: Locale) -> list[str]:
    said = []
    for table in found.tables:
        names = [row.name for row in table.rows if not row.learned]
        if names:
            known = table.train_reviews
            limit = write_limit(table, locale) if known is None else locale.number(known, 0)
            said.append(locale("unlearned_points", names=locale.listed(names), limit=limit))
    return said


def _describe(crossing: Crossing, found: LabelCurves, locale: Locale) -> str:
    low, high = _interval(crossing, locale)
    parts = {"a": crossing.a, "b": crossing.b, "low": low, "high": high}
    if crossing.labels == 0:
        return locale("passes_early", count=locale.number(crossing.fewest, 0), **parts)
    if math.isinf(crossing.labels):
        said = locale("passes_never", count=locale.number(crossing.most, 0), **parts)
    else:
        # An infinite end means that a may not be ahead with any measured number of labels.
        doubtful = math.isinf(crossing.high) or _rests_on_one_seed(crossing, found)
        key = "passes_perhaps" if doubtful else "passes"
        said = locale(key, at=_place(crossing.labels, crossing, locale), **parts)
    if crossing.above:
        above, below = (_list_counts(counts, locale) for counts in (crossing.above, crossing.below))
        said += " " + locale("above_before", above=above, below=below, **parts)
    return said


def _rests_on_one_seed(crossing: Crossing, found: LabelCurves) -> bool:
    """Return whether a measured point next to the crossing has only one seed."""
    for curve in found.curves:
        if curve.name in (crossing.a, crossing.b):
            fewer = [p for p in curve.points if p.labels <= crossing.labels]
            more = [p for p in curve.points if p.labels > crossing.labels]
            if any(len(point.seeds) == 1 for point in fewer[-1:] + more[:1]):
                return True
    return False


def _list_counts(counts: Iterable[float], locale: Locale) -> str:
    return locale.listed([locale.number(count, 0) for count in counts])


def scores_frame(found: LabelCurves, locale: Locale) -> pd.DataFrame:
    """Return the table of weighted F1, with a column for each number of labels."""
    limits = sorted({(p.labels, p.limit) for curve in found.curves for p in curve.points})
    columns = {limit: labels for labels, limit in limits}
    rows = []
    for curve in found.curves:
        cells = dict.fromkeys(columns, NOTHING)
        for point, interval in zip(curve.points, curve.intervals, strict=True):
            cells[point.limit] = locale.estimate(interval)
        gain = estimate_gain(curve, MORE)
        written = locale.estimate(gain, signed=True) if gain else NOTHING
        rows.append([curve.name, *cells.values(), written])
    counts = [locale("with_labels", count=locale.number(n, 0)) for n in columns.values()]
    return frame_of([locale("approach"), *counts, locale("gain", more=MORE)], rows)


def crossings_frame(found: LabelCurves, locale: Locale) -> pd.DataFrame:
    """Return the table of crossings: how many labels one approach needs to outscore another one."""
    rows = []
    for crossing in found.crossings:
        low, high = _interval(crossing, locale)
        at = _place(crossing.labels, crossing, locale)
        before = _list_counts(crossing.above, locale) or NOTHING
        rows.append([crossing.a, crossing.b, at, locale("interval", low=low, high=high), before])
    headings = ("approach", "passes_what", "passes_at", "passes_interval", "passes_before")
    return frame_of([locale(heading) for heading in headings], rows)


def _interval(crossing: Crossing, locale: Locale) -> tuple[str, str]:
    return _place(crossing.low, crossing, locale), _place(crossing.high, crossing, locale)


def _place(labels: float, crossing: Crossing, locale: Locale) -> str:
    if labels == 0:
        return locale("fewer_than", count=locale.number(crossing.fewest, 0))
    if math.isinf(labels):
        return locale("more_than", count=locale.number(crossing.most, 0))
    # The intervals are wide, so more than two digits would suggest too much precision.
    digits = 1 - math.floor(math.log10(labels))
    # Rounding must not lead outside of the measured numbers.
    return locale.number(min(max(round(labels, digits), crossing.fewest), crossing.most), 0)
