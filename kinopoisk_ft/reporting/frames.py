"""Format a comparison as DataFrames of strings.

A DataFrame without rows means that there is nothing to show.
"""

from __future__ import annotations

from collections import defaultdict

import pandas as pd

from kinopoisk_ft.reporting.columns import BEST, MARKS, columns_in
from kinopoisk_ft.reporting.locale import EN_DASH, NOTHING, Locale
from kinopoisk_ft.reporting.run_rows import Row
from kinopoisk_ft.reporting.table import Table, write_mean, write_measured, write_pair
from kinopoisk_ft.statistics.metrics import headline_first, shown_in
from kinopoisk_ft.statistics.pairs import Pair
from kinopoisk_ft.statistics.slices import NO_GRADE, SEEN, TRUNCATED, Slice

# Keys of the locale for the values `TRUNCATED` of slices.
CUTS = ("cut_none", "cut_less", "cut_more")
LEAKAGE_KINDS = ("near_duplicates", "films", "authors")


def frame_of(headings: list[str], rows: list[list[str]]) -> pd.DataFrame:
    """Return a DataFrame of strings with the given headings, which may repeat."""
    return pd.DataFrame(rows, columns=pd.Index(headings, dtype=object), dtype=object)


def results(table: Table, locale: Locale) -> pd.DataFrame:
    """Return the table of test results, with the majority-class baseline in the last row."""
    columns = columns_in("results")
    rows = [
        [
            row.name,
            str(len(row.runs)),
            *verdicts(table, row, locale),
            *(write_measured(table, row, c, locale) for c in columns),
        ]
        for row in table.rows
    ]
    majority = [locale.value(table.majority.get(c.name), c) for c in columns]
    headings = verdict_headings(table, locale)
    rows.append([locale("majority"), NOTHING, *[NOTHING] * len(headings), *majority])
    return frame_of([locale("approach"), "n", *headings, *map(locale.heading, columns)], rows)


def verdict_headings(table: Table, locale: Locale) -> list[str]:
    """Return the headings of the columns with verdicts, one for each margin."""
    return [locale("within", margin=locale.number(margin, 2)) for margin in table.decisions]


def verdicts(table: Table, row: Row, locale: Locale) -> list[str]:
    """Return, for each margin, the verdict on whether a row is as good as the best row."""
    keys = [table.verdict(row, margin) for margin in table.decisions]
    return [locale(key) if key else NOTHING for key in keys]


def sizes(table: Table, locale: Locale) -> pd.DataFrame:
    """Return the table of model sizes and speeds."""
    columns = columns_in("sizes")
    rows = [
        [row.name, *(write_mean(row, c, locale) for c in columns), row.first.max_length or NOTHING]
        for row in table.rows
    ]
    headings = [locale("approach"), *map(locale.heading, columns), locale("max_length")]
    return frame_of(headings, rows)


def against_best(table: Table, locale: Locale) -> pd.DataFrame:
    """Return the table that compares each row with the best values."""
    rows = []
    for row in (*table.rows, None):
        distances = row.from_best if row else table.majority_from_best
        # Without a recorded value, it is unknown whether the value is the best.
        answers = [
            locale("yes" if row and row.marked(mark) else "no") if name in distances else NOTHING
            for mark, name in MARKS.items()
        ]
        title = row.name if row else locale("majority")
        rows.append([title, *answers, *_distances(distances, locale)])
    marks = [f"{locale.label(name)}: {locale(f'mark_{mark}')}" for mark, name in MARKS.items()]
    headings = [locale("approach"), *marks, *(locale(f"{name}_from_best") for name in BEST)]
    return frame_of(headings, rows)


def _distances(found: dict[str, float], locale: Locale) -> list[str]:
    return [locale.value(found.get(name), column, signed=True) for name, column in BEST.items()]


def from_best(table: Table, locale: Locale) -> pd.DataFrame:
    """Return the table of differences in weighted F1 from the best approach, with verdicts."""
    rows = [
        [
            write_pair(one.name, table.rows[0].name, one.paired, locale),
            locale.estimate(one.interval, signed=True),
            locale(one.verdict),
        ]
        for one in table.against_best()
    ]
    return frame_of([locale("pair"), locale("difference_f1"), locale("verdict")], rows)


def differences(table: Table, locale: Locale) -> pd.DataFrame:
    """Return the table of differences between approaches, with intervals and p-values.

    Differences that are in the table `from_best` are left out.
    """
    headings = [locale("pair")]
    for metric in headline_first(shown_in("differences")):
        name = locale.label(metric.name)
        headings += [locale(key, metric=name) for key in ("difference", "p", "p_holm")]
    headings += [locale("mcnemar"), locale("mcnemar_holm")]
    # Each pair is a set, because the tables and the comparison may order its names differently.
    decided = {frozenset((table.rows[0].name, one.name)) for one in table.against_best()}
    # Reversed, so that the higher score is subtracted, as in the other table.
    rows = [
        _difference(pair.reversed(), locale)
        for pair in table.comparison.pairs
        if frozenset((pair.a, pair.b)) not in decided
    ]
    return frame_of(headings, rows)


def _difference(pair: Pair, locale: Locale) -> list[str]:
    cells = [write_pair(pair.a, pair.b, pair.paired, locale)]
    for metric in headline_first(shown_in("differences")):
        found = pair.differences[metric.name]
        ps = [locale.p_value(found.p), locale.p_value(found.p_holm)]
        cells += [locale.estimate(found, signed=True), *ps]
    test = pair.mcnemar
    tested = [locale.p_value(test.p), locale.p_value(test.p_holm)] if test else [NOTHING, NOTHING]
    return [*cells, *tested]


def calibration(table: Table, locale: Locale) -> pd.DataFrame:
    """Return the table of calibration metrics before and after temperature scaling."""
    rows = [row for row in table.rows if "temperature" in row.values]
    known = {name for row in rows for name in row.values}
    columns = [column for column in columns_in("calibration") if column.name in known]
    cells = [[row.name, *(write_mean(row, column, locale) for column in columns)] for row in rows]
    return frame_of([locale("approach"), *map(locale.heading, columns)], cells)


def slices(table: Table, metric: str, locale: Locale) -> pd.DataFrame:
    """Return the table of one metric, with one row per slice and one column per approach."""
    found = table.comparison.slices
    names = [row.name for row in table.rows if row.name in found]
    # `places` is {position of a slice: {approach: slice}}, and `values` is {column: its values}.
    places: dict[tuple[int, float], dict[str, Slice]] = defaultdict(dict)
    values: dict[str, set[str]] = defaultdict(set)
    for name in names:
        for one in found[name]:
            places[one.place][name] = one
            values[one.by].add(one.value)
    rows = []
    for _, here in sorted(places.items()):
        first = next(iter(here.values()))
        # A slice that is the only one of its column is the whole test set, so leave it out.
        if len(values[first.by]) == 1:
            continue
        counts = sorted({one.n for one in here.values()})
        cells = [
            locale.estimate(here[name].scores[metric], digits=3) if name in here else NOTHING
            for name in names
        ]
        # Models that truncate differently have slices of different sizes.
        rows.append([_slice_name(first, locale), _range(counts, locale), *cells])
    return frame_of([locale("slice"), locale("reviews"), *names], rows)


def _slice_name(one: Slice, locale: Locale) -> str:
    if one.by == "grade10" and one.value == NO_GRADE:
        return locale("no_grade")
    if one.by == "truncated":
        shown = locale(CUTS[TRUNCATED.index(one.value)], half=locale.percent(0.5))
    elif one.value in SEEN:
        shown = locale(one.value)
    else:
        # A value is a range of numbers of characters, such as "10-250", or one grade.
        shown = _range([int(end) for end in one.value.split("-")], locale)
    return f"{locale(f'by_{one.by}')}: {shown}"


def _range(numbers: list[int], locale: Locale) -> str:
    ends = dict.fromkeys((numbers[0], numbers[-1]))
    return EN_DASH.join(locale.number(n, 0) for n in ends)


def leakage(table: Table, locale: Locale) -> pd.DataFrame:
    """Return the table of overlaps between training data and test reviews."""
    found = table.leakage
    rows = [
        [
            locale(f"leakage_{kind}"),
            locale.number(found[f"leakage_{kind}"], 0),
            locale.percent(found[f"leakage_{kind}_share"]),
        ]
        # Overlaps of films and authors are unknown if the data do not contain films and authors.
        for kind in LEAKAGE_KINDS
        if f"leakage_{kind}_share" in found and f"leakage_{kind}" in found
    ]
    rows += [
        [locale("pretraining", names=row.name), locale.number(used[0], 0), locale.percent(used[1])]
        for row in table.rows
        if (used := row.pretrained_on_test) and used[0]
    ]
    return frame_of(
        [locale("leakage_what"), locale("leakage_shared"), locale("leakage_share")], rows
    )
