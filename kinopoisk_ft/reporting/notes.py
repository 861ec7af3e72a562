"""Write the notes on the report and on each table."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass

from kinopoisk_ft.reporting.columns import COLUMNS, MEMORY, TIME
from kinopoisk_ft.reporting.folds import FOLD, FOLDS
from kinopoisk_ft.reporting.locale import Locale
from kinopoisk_ft.reporting.run_rows import (
    BUDGETS,
    OF_TFIDF,
    SETTINGS_IN_NAME,
    Row,
    differing_settings,
    with_cost,
)
from kinopoisk_ft.reporting.runs import Collected
from kinopoisk_ft.reporting.table import Table, unknown_pretraining
from kinopoisk_ft.statistics.equivalence import MARGIN
from kinopoisk_ft.statistics.metrics import HEADLINE
from kinopoisk_ft.statistics.slices import NO_GRADE

# A caveat says that the approaches read different fractions of the texts if the highest and the
# lowest fraction differ by at least this much.
UNEQUAL_SHARE = 0.02
# If more rows than this have the most common value, a note calls them "the others".
MOST_NAMED = 3
# Fewer reviews with a written grade hardly change a score.
GRADED_SHARE = 0.05


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
    """Return the reasons to doubt the comparison.

    They concern approaches with one seed, grades in the texts, approaches that read different
    fractions of the texts, unequal training budgets, and approaches that have not learned.
    """
    found = []
    if single := [row.name for row in table.rows if len(row.runs) == 1]:
        key = "one_seed" if len(single) == len(table.rows) else "one_seed_for"
        names = locale.listed(single)
        found.append(Caveat(locale(f"short_{key}", names=names), locale(key, names=names)))
    if share := _graded_share(table):
        text = locale("written_grades", share=locale.percent(share))
        found.append(Caveat(locale("short_written_grades"), text))
    if text := _unequal_texts(table, locale):
        found.append(Caveat(locale("short_unequal_texts"), text))
    differing = differing_settings(table.rows)
    if budgets := [_differs(differing[key], key, locale) for key in differing if key in BUDGETS]:
        text = " ".join([*budgets, locale("longer_training")])
        found.append(Caveat(locale("short_unequal_budgets"), text))
    if names := locale.listed([row.name for row in table.rows if not row.learned]):
        text = locale("note_not_learned", names=names)
        found.append(Caveat(locale("short_not_learned", names=names), text))
    return found


def _graded_share(table: Table) -> float:
    """Return the share of test reviews with a grade out of 10.

    The result is 0 if grades were removed from the texts, or if the share is too low to matter.
    """
    if all(row.setting("data.strip_scores") != "False" for row in table.rows):
        return 0.0
    # Grades belong to the reviews, so the slices of one approach are sufficient.
    for slices in table.comparison.slices.values():
        graded = sum(one.n for one in slices if one.by == "grade10" and one.value != NO_GRADE)
        if graded:
            # A review with an empty grade is in no slice by grade, but in one by length.
            sizes: Counter[str] = Counter()
            for one in slices:
                sizes[one.by] += one.n
            share = graded / max(sizes.values())
            return share if share >= GRADED_SHARE else 0.0
    return 0.0


def _unequal_texts(table: Table, locale: Locale) -> str:
    shares = {row.name: row.mean("characters_seen_share") for row in table.rows}
    known = {name: share for name, share in shares.items() if share is not None}
    if not known or max(known.values()) - min(known.values()) < UNEQUAL_SHARE:
        return ""
    order = sorted(known.items(), key=lambda item: -item[1])
    listed = ", ".join(f"{name}: {locale.percent(share)}" for name, share in order)
    return locale("unequal_information", shares=listed)


def table_notes(table: Table, locale: Locale) -> list[str]:
    """Return the notes on one table."""
    notes = []
    if any(len(row.runs) > 1 for row in table.rows):
        notes.append(locale("note_spread"))
    if all(row.is_network for row in table.rows):
        notes.append(locale("note_no_tfidf"))
    else:
        notes.append(locale("note_tfidf"))
    if HEADLINE not in table.majority:
        notes.append(locale("note_no_majority"))
    if table.several_subsets:
        notes.append(locale("note_subsets"))
    elif table.majority_differs:
        notes.append(locale("note_majority_differs"))
    differing = differing_settings(table.rows)
    notes += [_differs(differing[key], key, locale) for key in differing if key not in BUDGETS]
    networks = [row for row in table.rows if row.is_network]
    random = [row.name for row in networks if row.starts_randomly]
    if 0 < len(random) < len(networks):
        notes.append(locale("note_random_start", names=locale.listed(random)))
    if names := [row.name for row in table.rows if _uses_prefix_cache(row)]:
        notes.append(locale("note_owed", names=", ".join(names)))
    if names := unknown_pretraining(table):
        notes.append(locale("note_pretraining_unknown", names=locale.listed(names)))
    notes += _settings(table.rows) + _times(table.rows, locale)
    if compared := with_cost(table.rows, MEMORY):
        notes.append(locale("note_memory"))
        if sum(MEMORY in row.values for row in table.rows) > len(compared):
            device = compared[0].compared("device")
            notes.append(locale("note_memory_of_one_device", device=device))
    missing: dict[str, list[str]] = defaultdict(list)
    for row in table.rows:
        expected = [column for column in COLUMNS.values() if column.expected]
        lacking = [locale.label(c.name) for c in expected if c.name not in row.values]
        missing[", ".join(lacking)].append(row.name)
    for columns, names in missing.items():
        if columns:
            listed = locale("everyone") if len(names) == len(table.rows) else ", ".join(names)
            notes.append(locale("note_missing", columns=columns, names=listed))
    # `pool_folds` has removed the number of the fold from the settings of pooled runs.
    folds = {row.setting(FOLDS) for row in table.rows if FOLD not in row.first.settings} - {""}
    for count in sorted(folds):
        notes.append(locale("note_folds", count=count))
    if any("temperature" in row.values for row in table.rows):
        notes.append(locale("note_calibration"))
    return notes + _comparison_notes(table, locale)


def _uses_prefix_cache(row: Row) -> bool:
    recorded = any(name.startswith("prefix_") for run in row.runs for name in run.metrics)
    return recorded or row.setting("trainer.prefix_cache") not in ("", "off")


def _comparison_notes(table: Table, locale: Locale) -> list[str]:
    notes, comparison = [], table.comparison
    if comparison.means:
        notes.append(locale("note_intervals"))
    if 1 in comparison.groups:
        notes.append(locale("note_one_group"))
    elif comparison.groups:
        # The predictions do not tell whether their groups are films or authors.
        by_author = {row.setting("data.split") for row in table.rows} == {"author"}
        count = locale.listed([str(n) for n in comparison.groups])
        notes.append(locale(f"note_groups_{'author' if by_author else 'film'}", count=count))
    if comparison.pairs:
        notes.append(locale("note_verdicts", margin=locale.number(MARGIN, 2)))
        notes.append(locale("note_pairs"))
    if any(comparison.slices.values()):
        notes.append(locale("note_slices"))
    if _cut_differently(table):
        notes.append(locale("note_truncated"))
    for problem in comparison.problems:
        key, detail = f"note_{problem.kind}", problem.detail
        if problem.kind == "unpaired" and detail == "classes":
            key = "note_other_classes"
        # For "no_predictions", the detail is a list of seeds. Otherwise, it is a key of the locale.
        if problem.kind != "no_predictions":
            detail = locale(f"reason_{detail}")
        notes.append(locale(key, names=locale.listed(list(problem.names)), detail=detail or "-"))
    if comparison.absent_slices:
        facts = ", ".join(locale(f"by_{by}") for by in comparison.absent_slices)
        notes.append(locale("note_no_slice", facts=facts))
    return notes


def _cut_differently(table: Table) -> bool:
    # Approaches that cut off the same texts have slices of the same sizes.
    sizes = {
        tuple((one.value, one.n) for one in found if one.by == "truncated")
        for found in table.comparison.slices.values()
    }
    return len(sizes) > 1


def _differs(parts: list[tuple[str, str]], setting: str, locale: Locale) -> str:
    # {value: names of rows}. The inner dicts are sets that keep their order.
    names: dict[str, dict[str, None]] = defaultdict(dict)
    for name, value in parts:
        names[locale.setting(value) or locale("not_set")][name] = None
    groups = {value: ", ".join(named) for value, named in names.items()}
    most = max(names, key=lambda value: len(names[value]))
    if len(names[most]) > MOST_NAMED:
        # The value is removed and added again, so that "the others" come last.
        del groups[most]
        # TF-IDF is compared only in `OF_TFIDF`, so other settings differ only between networks.
        groups[most] = locale("others" if setting in OF_TFIDF else "other_networks")
    listed = "; ".join(f"{value} ({named})" for value, named in groups.items())
    return locale("note_differs", what=locale(setting), groups=listed)


def _times(rows: tuple[Row, ...], locale: Locale) -> list[str]:
    return [
        locale(
            "note_times", name=row.name,
            low=locale.seconds(row.values[TIME].low), high=locale.seconds(row.values[TIME].high),
        )
        for row in rows
        if row.has_doubtful_times
    ]  # fmt: skip


def _settings(rows: tuple[Row, ...]) -> list[str]:
    return [
        # Names such as `bert #2` do not contain the settings.
        f"{row.name}: {', '.join(f'{k}={v}' for k, v in row.own_settings.items())}."
        for row in rows
        if len(row.own_settings) > SETTINGS_IN_NAME
    ]
