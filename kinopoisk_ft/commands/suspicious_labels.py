"""Implement `kinopoisk-ft suspicious-labels`, which lists labels that are probably wrong."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kinopoisk_ft.console import handle_errors
from kinopoisk_ft.errors import UserError, import_extra
from kinopoisk_ft.files import check_writable
from kinopoisk_ft.text import escape_formula, format_csv, to_one_line

if TYPE_CHECKING:
    import pandas as pd

DESCRIPTION = """\
List the reviews whose labels are probably wrong, most suspicious first (extra 'explain').

A label is suspicious if a model that was not trained on the review predicts another class with
confidence (confident learning; Northcutt et al., 2021). One run gives the probabilities of its test
reviews. To check all reviews, run all folds:

  kinopoisk-ft train -m data.folds=5 data.fold=0,1,2,3,4 …
"""
EXAMPLE = """\
example:
  kinopoisk-ft suspicious-labels outputs/2026-01-01/10-00-00/*/predictions.parquet
"""
FILE = "predictions.parquet"
# Number of rows and characters of a review in the printed table.
MOST_ROWS, CHARACTERS = 20, 70


@handle_errors
def main(argv: list[str] | None = None) -> None:
    """List suspicious labels."""
    parser = argparse.ArgumentParser(
        prog="kinopoisk-ft suspicious-labels", description=DESCRIPTION, epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("runs", nargs="+", type=Path, metavar="run",
                        help=f"output_dir of a run, or its {FILE}")  # fmt: skip
    parser.add_argument("--output", type=Path, metavar="FILE.csv", help="table to write, all rows")
    args = parser.parse_args(argv)
    if args.output:
        # A mistyped command must not overwrite the predictions of a run.
        if args.output.suffix.lower() != ".csv":
            raise UserError("the output must be a .csv file", where=str(args.output),
                            fix="set --output to a file name that ends in .csv")  # fmt: skip
        check_writable(args.output, "--output")
    found, count = find_suspicious(args.runs)
    print(_format(found, count))
    if args.output:
        cells = found.map(escape_formula).astype(object)
        cells = cells.where(cells.notna(), None)
        lines = format_csv([found.columns, *cells.itertuples(index=False, name=None)])
        # Without newline="", Windows would write \r\n for each \n, also inside the texts.
        args.output.write_text("".join(lines), encoding="utf-8", newline="")
        print(f"{len(found)} rows written to {args.output}")


def find_suspicious(runs: Sequence[Path]) -> tuple[pd.DataFrame, int]:
    """Find the reviews with suspicious labels, most suspicious first.

    Returns:
        A frame with one row per suspicious label, and the number of checked reviews. The columns
        are row (row number of the review in the source data), label, suggested (the most probable
        class), p_label (the probability of the label) and, if known, film and text (its start).

    Raises:
        UserError: cleanlab is missing, a file cannot be read, or the runs cannot be combined.
    """
    # A missing package is reported before the predictions are read.
    find_label_issues = import_extra("cleanlab.filter", "explain").find_label_issues
    import numpy as np
    import pandas as pd

    from kinopoisk_ft.statistics.predictions import Predictions

    parts = [Predictions.read(run / FILE if run.is_dir() else run) for run in runs]
    for run, part in zip(runs, parts, strict=True):
        if part.class_names != parts[0].class_names:
            raise UserError("the runs have different classes", where=str(run),
                            fix="pass only runs of the same cross-validation")  # fmt: skip
    rows = np.concatenate([part.rows for part in parts])
    # Each review needs exactly one prediction, by a model that was not trained on it.
    if len(set(rows.tolist())) < len(rows):
        raise UserError("two runs have the same test review", where=", ".join(map(str, runs)),
                        fix="pass one run per fold, all with the same seed")  # fmt: skip
    labels = np.concatenate([part.labels for part in parts])
    # cleanlab raises a ValueError if there is only one class.
    if len(set(labels.tolist())) < 2:
        raise UserError("all reviews have the same label", where=", ".join(map(str, runs)),
                        fix="give runs whose test reviews have at least two classes")  # fmt: skip
    # (N, classes), in the order of `rows` and `labels`.
    probabilities = np.concatenate([part.probabilities for part in parts])
    # The self-confidence is the probability of the given label. The lowest values come first.
    # One process is enough: the data are small, and new processes would import everything again.
    order = find_label_issues(
        labels, probabilities, return_indices_ranked_by="self_confidence", n_jobs=1
    )
    names = np.array(parts[0].class_names, dtype=object)
    facts = pd.concat([part.facts for part in parts], ignore_index=True)
    found = pd.DataFrame({
        "row": rows, "label": names[labels], "suggested": names[probabilities.argmax(1)],
        "p_label": probabilities[np.arange(len(labels)), labels],
    })  # fmt: skip
    known = facts[[name for name in ("film", "text") if name in facts]]
    return pd.concat([found, known], axis=1).iloc[order].reset_index(drop=True), len(rows)


def _format(found: pd.DataFrame, count: int) -> str:
    lines = [f"{len(found)} of {count} labels are suspicious"]
    if len(found):
        shown = found.head(MOST_ROWS).map(
            lambda value: to_one_line(value)[:CHARACTERS] if isinstance(value, str) else value
        )
        lines.append(shown.to_string(index=False, float_format="{:.4f}".format))
    if len(found) > MOST_ROWS:
        lines.append(f"… and {len(found) - MOST_ROWS} more; --output writes all")
    return "\n".join(lines)
