"""Write the notes on the report and on each table."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from kinopoisk_ft.reporting.columns import COLUMNS, TIME
from kinopoisk_ft.reporting.folds import FOLD, FOLDS
from kinopoisk_ft.reporting.locale import NOTHING, Locale
from kinopoisk_ft.reporting.run_rows import BUDGETS, SETTINGS_IN_NAME, Row, differing_settings
from kinopoisk_ft.reporting.runs import Collected
from kinopoisk_ft.reporting.table import Table, unknown_pretraining
from kinopoisk_ft.statistics.comparison import Comparison
from kinopoisk_ft.statistics.equivalence import MARGIN
from kinopoisk_ft.statistics.metrics import HEADLINE

# A note warns about an approach whose longest training time exceeds its shortest by this factor. On
# an idle machine, training times with the same settings differ by only a few percent.
DOUBTFUL_RATIO = 1.5
# A caveat says that the approaches read different fractions of the texts if the highest and the
# lowest fraction differ by at least this much.
UNEQUAL_SHARE = 0.02
# If more rows than this have the most common value, a note calls them "the others".
MOST_NAMED = 3


def collection_notes(collected: Collected, count: int, locale: Locale) -> list[str]:
    """Return the notes on the whole report, which has `count` tables."""
    notes = []
    if count > 1:
        notes.append(locale("note_tables", count=count))
    if collected.superseded:
        notes.append(locale("note_superseded", count=collected.superseded))
    if collected.unfinished:
        notes.append(locale("note_unfinished", count=collected.unfinished))
    return notes


@dataclass(frozen=True)
class Caveat:
    """A reason to doubt the comparison, in a few words (`short`) and in sentences (`text`)."""

    short: str
    text: str


def caveats(table: Table, locale: Locale) -> list[Caveat]:
    """Return the reasons to doubt the comparison: seeds, unequal texts and budgets, not learned."""
    found = []
    if single := [row.name for row in table.rows if len(row.runs) == 1]:
        key = "one_seed" if len(single) == len(table.rows) else "one_seed_for"
        names = locale.listed(single)
        found.append(Caveat(locale(f"short_{key}", names=names), locale(key, names=names)))
    if text := _unequal_texts(table, locale):
        found.append(Caveat(locale("short_unequal_texts"), text))
    differing = differing_settings(table.rows)
    if budgets := [_differs(differing[key], key, locale) for key in differing if key in BUDGETS]:
        found.append(Caveat(locale("short_unequal_budgets"), " ".join(budgets)))
    if names := locale.listed([row.name for row in table.rows if not row.learned]):
        text = locale("note_not_learned", names=names)
        found.append(Caveat(locale("short_not_learned", names=names), text))
    return found


def _unequal_texts(table: Table, locale: Locale) -> str:
    shares = {row.name: row.mean("characters_seen_share") for row in table.rows}
    known = {name: share for name, share in shares.items() if share is not None}
    if not known or max(known.values()) - min(known.values()) < UNEQUAL_SHARE:
        return ""
    order = sorted(known.items(), key=lambda item: -item[1])
    listed = ", ".join(f"{name} {locale.percent(share)}" for name, share in order)
    return locale("unequal_information", shares=listed)


def table_notes(table: Table, locale: Locale) -> list[str]:
    """Return the notes on one table."""
    notes = []
    if any(len(row.runs) > 1 for row in table.rows):
        notes.append(locale("note_spread"))
    if all(row.is_network for row in table.rows):
        notes.append(locale("note_no_tfidf"))
    if HEADLINE not in table.majority:
        notes.append(locale("note_no_majority"))
    if table.majority_differs:
        notes.append(locale("note_majority_differs"))
    differing = differing_settings(table.rows)
    notes += [_differs(differing[key], key, locale) for key in differing if key not in BUDGETS]
    networks = [row for row in table.rows if row.is_network]
    random = [row.name for row in networks if row.starts_randomly]
    if 0 < len(random) < len(networks):
        notes.append(locale("note_random_start", names=locale.listed(random)))
    charged = {column.charged for column in COLUMNS.values() if column.charged}
    if names := [r.name for r in table.rows if any(charged & set(run.metrics) for run in r.runs)]:
        notes.append(locale("note_owed", names=", ".join(names)))
    if names := unknown_pretraining(table):
        notes.append(locale("note_pretraining_unknown", names=locale.listed(names)))
    notes += _settings(table.rows) + _times(table.rows, locale)
    missing: dict[str, list[str]] = defaultdict(list)
    for row in table.rows:
        expected = [column for column in COLUMNS.values() if column.expected]
        lacking = [locale.label(c.name) for c in expected if c.name not in row.values]
        missing[", ".join(lacking)].append(row.name)
    for columns, names in missing.items():
        if columns:
            notes.append(locale("note_missing", columns=columns, names=", ".join(names)))
    folds = {row.setting(FOLDS) for row in table.rows if FOLD not in row.first.settings} - {""}
    for count in sorted(folds):
        notes.append(locale("note_folds", count=count))
    if any("temperature" in row.values for row in table.rows):
        notes.append(locale("note_calibration"))
    return notes + _comparison_notes(table.comparison, locale)


def _comparison_notes(comparison: Comparison, locale: Locale) -> list[str]:
    notes = []
    if comparison.means:
        notes.append(locale("note_intervals"))
    if comparison.groups:
        count = locale.listed([str(n) for n in comparison.groups])
        notes.append(locale("note_groups", count=count))
    if comparison.pairs:
        notes.append(locale("note_verdicts", margin=locale.number(MARGIN, 2)))
        notes.append(locale("note_pairs"))
    if any(comparison.slices.values()):
        notes.append(locale("note_slices"))
    if _cut_differently(comparison):
        notes.append(locale("note_truncated"))
    for problem in comparison.problems:
        key, detail = f"note_{problem.kind}", problem.detail
        if problem.kind == "unpaired" and detail == "classes":
            key = "note_other_classes"
        if problem.kind != "no_predictions":
            detail = locale(f"reason_{detail}")
        notes.append(locale(key, names=locale.listed(list(problem.names)), detail=detail or "-"))
    if comparison.absent_slices:
        facts = ", ".join(locale(f"by_{by}") for by in comparison.absent_slices)
        notes.append(locale("note_no_slice", facts=facts))
    return notes


def _cut_differently(comparison: Comparison) -> bool:
    sizes = {
        tuple((one.value, one.n) for one in found if one.by == "truncated")
        for found in comparison.slices.values()
    }
    return len(sizes) > 1


def _differs(parts: list[tuple[str, str]], setting: str, locale: Locale) -> str:
    names: dict[str, dict[str, None]] = defaultdict(dict)
    for name, value in parts:
        names[value or NOTHING][name] = None
    groups = {value: ", ".join(named) for value, named in names.items()}
    most = max(names, key=lambda value: len(names[value]))
    if len(names[most]) > MOST_NAMED:
        groups[most] = locale("others")
    listed = "; ".join(f"{value} ({named})" for value, named in groups.items())
    return locale("note_differs", what=locale(setting), groups=listed)


def _times(rows: tuple[Row, ...], locale: Locale) -> list[str]:
    notes = []
    for row in rows:
        times = [run.metrics[TIME] for run in row.runs if TIME in run.metrics]
        if row.is_network and times and max(times) > DOUBTFUL_RATIO * min(times):
            low, high = locale.seconds(min(times)), locale.seconds(max(times))
            notes.append(locale("note_times", name=row.name, low=low, high=high))
    return notes


def _settings(rows: tuple[Row, ...]) -> list[str]:
    return [
        # Names such as `bert #2` do not contain the settings.
        f"{row.name}: {', '.join(f'{k}={v}' for k, v in row.own_settings.items())}."
        for row in rows
        if len(row.own_settings) > SETTINGS_IN_NAME
    ]
