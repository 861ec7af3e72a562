"""Write the report as CSV, JSON and LaTeX.

In CSV and JSON, names and numbers do not depend on the language of the report.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import Any

import pandas as pd

from kinopoisk_ft.reporting.columns import BEST, COLUMNS, MARKS
from kinopoisk_ft.reporting.document import Document, Section
from kinopoisk_ft.reporting.frames import results
from kinopoisk_ft.reporting.label_curves import LabelCurves
from kinopoisk_ft.reporting.locale import MINUS, NO_BREAK_SPACE, Locale
from kinopoisk_ft.reporting.run_rows import Row
from kinopoisk_ft.reporting.table import Table, data_line
from kinopoisk_ft.text import escape_formula, format_csv

MAJORITY_ROW = "majority class"
PARAMETERS = ("trainable_parameters", "total_parameters")
PAIR_FIELDS = (
    "data", "split_digest", "train_limit", "a", "b", "paired", "same_seeds", "several_seeds",
    "metric", "difference", "low", "high", "p", "p_holm", "only_a", "only_b", "mcnemar_p",
    "mcnemar_p_holm",
)  # fmt: skip
# Prefixes of columns, with the attributes of `Decision`. The margin ends the name of the column.
# The bounds are those of the page, unlike `low` and `high` in the file of differences, which are
# the two-sided interval of one difference.
DECIDED = {
    "verdict": "verdict", "p_equivalent": "p_equivalent", "difference_low": "low",
    "difference_high": "high", "p_as_good": "p_as_good", "p_worse": "p_worse",
}  # fmt: skip
SLICE_FIELDS = (
    "data", "split_digest", "train_limit", "approach", "by", "value", "n", "metric", "mean", "low",
    "high",
)  # fmt: skip
# Characters that are commands of LaTeX, or that pdfLaTeX rejects, such as U+2212.
SPECIAL = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    "±": r"$\pm$", MINUS: "$-$", NO_BREAK_SPACE: "~", "Δ": r"$\Delta$",
    # LaTeX's default encoding, OT1, prints <, > and | as ¡, ¿ and —.
    "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}",
}  # fmt: skip
LATEX_HEAD = r"""% In the preamble: \usepackage{booktabs}, \usepackage{graphicx}
% and for Russian: \usepackage[T2A]{fontenc}, \usepackage[russian]{babel}
"""


def as_csv(document: Document) -> str:
    """Return CSV: for each table, a line per row, then a line for the majority-class baseline."""
    return _csv(_record(s.table, row) for s in document.sections for row in _all_rows(s))


def differences_csv(document: Document) -> str:
    """Return CSV with one line for each metric of each pair of approaches."""
    return _csv((line for s in document.sections for line in _pairs(s.table)), PAIR_FIELDS)


def slices_csv(document: Document) -> str:
    """Return CSV with one line per approach, slice and metric."""
    return _csv((line for s in document.sections for line in _slices(s.table)), SLICE_FIELDS)


def _csv(lines: Iterable[dict[str, Any]], fields: tuple[str, ...] | None = None) -> str:
    # With `fields`, a table without lines also has a header.
    frame = pd.DataFrame(list(lines), columns=fields, dtype=object)
    # `map` would turn the None of a column of numbers into NaN again.
    cells = frame.map(escape_formula).astype(object)
    cells = cells.where(cells.notna(), None)
    return "".join(format_csv([frame.columns, *cells.itertuples(index=False, name=None)]))


def _pairs(table: Table) -> Iterator[dict[str, Any]]:
    for pair in table.comparison.pairs:
        test = pair.mcnemar
        for metric, found in pair.differences.items():
            yield {
                "data": table.data, "split_digest": table.split_digest,
                "train_limit": table.train_limit, "a": pair.a, "b": pair.b,
                "paired": _yes(pair.paired), "same_seeds": _yes(pair.same_seeds),
                "several_seeds": _yes(pair.measured), "metric": metric,
                "difference": found.mean, "low": found.low, "high": found.high,
                "p": found.p, "p_holm": found.p_holm,
                # There is no McNemar test (None) if the test reviews differ.
                "only_a": test and test.only_a, "only_b": test and test.only_b,
                "mcnemar_p": test and test.p, "mcnemar_p_holm": test and test.p_holm,
            }  # fmt: skip


def _slices(table: Table) -> Iterator[dict[str, Any]]:
    for name, slices in table.comparison.slices.items():
        for one in slices:
            for metric, found in one.scores.items():
                yield {
                    "data": table.data, "split_digest": table.split_digest,
                    "train_limit": table.train_limit, "approach": name,
                    "by": one.by, "value": one.value, "n": one.n, "metric": metric,
                    "mean": found.mean, "low": found.low, "high": found.high,
                }  # fmt: skip


def as_json(document: Document, language: str) -> str:
    """Return the whole report as JSON, in which unknown values are null."""
    whole = {
        "experiment": document.experiment,
        "parent": document.parent,
        "language": language,
        "notes": document.notes,
        "tables": [_json_table(section) for section in document.sections],
        "failed": [asdict(failure) for failure in document.failures],
        "label_curves": [_json_curves(curves) for curves in document.curves],
    }
    # NaN is not valid JSON (RFC 8259), so raise an error instead of writing it.
    return json.dumps(whole, ensure_ascii=False, indent=2, allow_nan=False) + "\n"


def _json_table(section: Section) -> dict[str, Any]:
    table = section.table
    rows = []
    for row in _all_rows(section):
        record = _record(table, row)
        # CSV cells are strings such as "yes" and "", which become true and null in JSON.
        record |= {mark: record[mark] == "yes" for mark in MARKS if record[mark]}
        record["runs"] = [asdict(run) for run in row.runs] if row else []
        record["own_settings"] = row.own_settings if row else {}
        rows.append({key: None if value == "" else value for key, value in record.items()})
    # `asdict` returns copies, so the changes below do not affect the table.
    comparison = asdict(table.comparison)
    for slices in comparison["slices"].values():
        # `pop` is called before the dicts are merged, so the result lacks the key `scores`.
        slices[:] = [one | one.pop("scores") for one in slices]
    for pair in comparison["pairs"]:
        for difference in pair["differences"].values():
            # Leave out the 10,000 resamples, which would make the file too large.
            total = difference.pop("total")
            difference["review_variance"] = total.review_variance
            difference["seed_variance"] = total.seed_variance
    return {
        "data": table.data,
        "split_digest": table.split_digest,
        "source_digest": table.source_digest or None,
        "train_limit": table.train_limit or None,
        "rows": rows,
        "best": table.best,
        "comparison": comparison,
        "pictures": section.pictures,
        "answer": section.answer,
        "caveats": [caveat.text for caveat in section.caveats],
        "notes": section.notes,
        "conclusions": section.conclusions,
        "recommendations": [choice.text for choice in section.choices],
    }


def _json_curves(found: LabelCurves) -> dict[str, Any]:
    points = [
        {"approach": curve.name, "labels": point.labels, **asdict(interval)}
        for curve in found.curves
        for point, interval in zip(curve.points, curve.intervals, strict=True)
    ]
    # JSON has no infinity. Null stands for it; see `Crossing`.
    crossings = [
        {key: None if value == math.inf else value for key, value in asdict(crossing).items()}
        for crossing in found.crossings
    ]
    return {"points": points, "crossings": crossings}


def _all_rows(section: Section) -> list[Row | None]:
    return [*section.table.rows, None]


def _record(table: Table, row: Row | None) -> dict[str, Any]:
    """Return the values of a row, or of the majority-class baseline if `row` is None.

    Keys are CSV columns. Unknown values are empty strings.
    """
    record: dict[str, Any] = {
        "data": table.data,
        "split_digest": table.split_digest,
        "source_digest": table.source_digest,
        "train_limit": table.train_limit,
        "approach": row.name if row else MAJORITY_ROW,
        "model": row.first.model if row else "",
        "adapter": row.first.adapter if row else "",
        "max_length": row.first.max_length if row else "",
        "n": len(row.runs) if row else "",
        "seeds": " ".join(run.repetition for run in row.runs) if row else "",
    }
    for name, column in COLUMNS.items():
        spread = row.values.get(name) if row else None
        mean = table.majority.get(name, "") if row is None else spread.mean if spread else ""
        # MLflow stores counts as floats.
        whole = name in PARAMETERS and isinstance(mean, float) and mean.is_integer()
        record[name] = int(mean) if whole else mean
        if name not in PARAMETERS:
            record[f"{name}_std"] = "" if spread is None or spread.std is None else spread.std
        if column.interval:
            interval = table.interval(row, name) if row else None
            record[f"{name}_low"] = interval.low if interval else ""
            record[f"{name}_high"] = interval.high if interval else ""
    for margin, decisions in table.decisions.items():
        decision = decisions.get(row.name) if row else None
        for name, attribute in DECIDED.items():
            record[f"{name}_{margin:g}"] = getattr(decision, attribute) if decision else ""
    record["learned"] = _yes(row.learned) if row else ""
    from_best = row.from_best if row else table.majority_from_best
    for mark, name in MARKS.items():
        marked = row is not None and row.marked(mark)
        record[mark] = _yes(marked) if name in from_best else ""
    for name in BEST:
        record[f"{name}_best"] = table.best.get(name, "")
        record[f"{name}_from_best"] = from_best.get(name, "")
    return record


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def as_latex(document: Document, locale: Locale) -> str:
    """Return each table of results as a LaTeX `table` environment."""
    tables = [
        _latex_table(results(s.table, locale), data_line(s.table, locale), f"tab:comparison-{i}")
        for i, s in enumerate(document.sections, start=1)
    ]
    return LATEX_HEAD + "\n".join(tables)


def _latex_table(frame: pd.DataFrame, caption: str, label: str) -> str:
    head, *body = [
        " & ".join(map(escape_latex, row)) + r" \\" for row in [frame.columns, *frame.to_numpy()]
    ]
    return "\n".join([
        r"\begin{table}", r"\centering", rf"\caption{{{escape_latex(caption)}}}",
        rf"\label{{{label}}}", r"\resizebox{\linewidth}{!}{%",
        rf"\begin{{tabular}}{{l{'r' * (len(frame.columns) - 1)}}}", r"\toprule", head, r"\midrule",
        *body, r"\bottomrule", r"\end{tabular}}", r"\end{table}", "",
    ])  # fmt: skip


def escape_latex(text: str) -> str:
    """Escape the characters that have a special meaning in LaTeX."""
    return "".join(SPECIAL.get(sign, sign) for sign in text)
