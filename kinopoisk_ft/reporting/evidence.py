"""Tables of what stands behind the conclusions: differences, calibration, slices of the test."""

from __future__ import annotations

from collections import defaultdict

from kinopoisk_ft.reporting.cells import spread_text
from kinopoisk_ft.reporting.table import Table
from kinopoisk_ft.reporting.words import NOTHING, Words
from kinopoisk_ft.statistics.pairs import Pair
from kinopoisk_ft.statistics.slices import NO_GRADE, SEEN, Slice

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
        written = [_score(here.get(name), score, words) for name in names]
        rows.append([_kind(next(iter(here.values())), words), _counts(counts, words), *written])
    return rows


def _kind(one: Slice, words: Words) -> str:
    """Say what reviews a slice is of."""
    if one.by == "grade10" and one.value == NO_GRADE:
        return words("no_grade")
    shown = words(one.value) if one.value in SEEN else words.range(one.value)
    return f"{words(f'by_{one.by}')}: {shown}"


def _score(one: Slice | None, score: str, words: Words) -> str:
    if one is None:
        return NOTHING
    interval = one.accuracy if score == "accuracy" else one.f1_weighted
    return f"{words.number(interval.mean, 3)} {words.interval(interval, digits=3)}"


def _counts(counts: list[int], words: Words) -> str:
    """Write how many reviews a slice has; a model's own truncation makes it differ."""
    ends = dict.fromkeys((counts[0], counts[-1]))
    return words.range("-".join(words.number(n, 0) for n in ends))
