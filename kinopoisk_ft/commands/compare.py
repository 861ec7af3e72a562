"""Implement `kinopoisk-ft compare`, which compares files with predictions from any tool."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kinopoisk_ft.console import handle_errors
from kinopoisk_ft.errors import UserError, suggest_name

if TYPE_CHECKING:
    import pandas as pd

    from kinopoisk_ft.statistics.comparison import Approach, Comparison
    from kinopoisk_ft.statistics.equivalence import Decision
    from kinopoisk_ft.statistics.pairs import Pair

DESCRIPTION = """\
Compare prediction files, and report whether each approach is as good as the best one.

A file (.parquet, .csv, .tsv, .jsonl) has the columns `label` and `predicted` and one row per test
example. Two columns are optional. `row` identifies the example; without this column, all files must
have the same order. `group` or `film` marks examples that depend on each other and are resampled
together.
"""
EXAMPLE = """\
example with three seeds of one approach:
  kinopoisk-ft compare full=a0.parquet,a1.parquet,a2.parquet lora=b0.parquet,b1.parquet tfidf.csv
"""


@handle_errors
def main(argv: list[str] | None = None) -> None:
    """Compare prediction files."""
    parser = argparse.ArgumentParser(
        prog="kinopoisk-ft compare", description=DESCRIPTION, epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("files", nargs="+", metavar="[name=]file[,file...]",
                        help="one approach: its prediction files, one for each seed")  # fmt: skip
    parser.add_argument("--margin", type=float, metavar="M",
                        help="loss of weighted F1 that matters (default: 0.02)")  # fmt: skip
    parser.add_argument("--reference", metavar="NAME",
                        help="compare with this approach (default: the best one)")  # fmt: skip
    args = parser.parse_args(argv)
    print(_compare(args.files, args.margin, args.reference))


def _compare(arguments: Sequence[str], margin: float | None, reference: str | None) -> str:
    from kinopoisk_ft.statistics.comparison import compare
    from kinopoisk_ft.statistics.equivalence import MARGIN, decide_against
    from kinopoisk_ft.statistics.metrics import HEADLINE

    # The default is not in the parser, because importing it also imports NumPy and SciPy.
    margin = MARGIN if margin is None else margin
    if not 0 < margin < 1:
        raise UserError(f"--margin {margin} is not between 0 and 1", fix="use for example 0.02")
    approaches = _read_approaches(arguments)
    found = compare(approaches)
    # Unlike the report, this command refuses approaches with different test examples.
    if found.problems:
        raise _explain(found)
    _check_groups(approaches)
    means = {name: scores[HEADLINE] for name, scores in found.means.items()}
    names = sorted(means, key=lambda name: -means[name].mean)
    if reference is not None and reference not in names:
        raise UserError(f"there is no approach '{reference}'", where="--reference",
                        fix=suggest_name(reference, names))  # fmt: skip
    best = reference or names[0]
    decisions = decide_against(best, names, found, margin)
    # As in the report, a second verdict uses half of the margin.
    strict = decide_against(best, names, found, margin / 2)
    rows, remarks = [], []
    for name in names:
        mean = means[name]
        row = [name, f"{mean.mean:.4f} [{mean.low:.4f}, {mean.high:.4f}]"]
        # Only the reference has no pair, because it is not compared with itself.
        if (pair := found.pair(name, best)) is None:
            rows.append([*row, "", "reference", ""])
            continue
        decision, delta = decisions[name], pair.differences[HEADLINE].mean
        row.append(f"{delta:+.4f} [{decision.low:+.4f}, {decision.high:+.4f}]")
        rows.append([*row, decision.verdict, strict[name].verdict])
        if decision.verdict == "undecided":
            remarks.append(f"{name}: undecided at {margin:g}; {_needed(decision, pair)}")
    if single := [one.name for one in approaches if len(one.runs) == 1]:
        remarks.append(
            f"One seed: {', '.join(single)}. The variation between seeds was not measured, so "
            "verdicts apply to these runs only."
        )
    return _format(rows, best, margin, remarks)


def _check_groups(approaches: Sequence[Approach]) -> None:
    """Raise UserError if the files group the test examples differently, or all in one group."""
    import numpy as np
    import pandas as pd

    found = []
    for one in approaches:
        for run in filter(None, one.runs):
            # Without groups, each example is one. The numbers do not depend on the names of groups.
            groups = np.arange(len(run.rows)) if run.groups is None else run.groups
            found.append((one.name, pd.factorize(groups)[0]))
    first, expected = found[0]
    for name, groups in found:
        if not np.array_equal(groups, expected):
            raise UserError(
                f"the files of {first} and {name} have different groups of test examples",
                where="column 'group' or 'film'",
                fix="give this column to all files, with the same groups, or to none",
            )
    if len(expected) == 1:
        raise UserError(
            "there is only one test example, so intervals cannot be computed",
            fix="give at least two examples",
        )
    if expected.max() == 0:
        raise UserError(
            "all test examples belong to the same group, so intervals cannot be computed",
            where="column 'group' or 'film'",
            fix="remove this column, or add examples of other groups",
        )


def _needed(decision: Decision, pair: Pair) -> str:
    from kinopoisk_ft.statistics.equivalence import LARGEST

    examples, seeds = decision.count_more(pair.reviews), decision.more_seeds
    ways, limits = [], []
    if examples:
        ways.append(f"additional test examples (at least {examples:,})")
    elif seeds:
        limits.append("with so few seeds, more test examples would not be enough")
    else:
        limits.append(f"even {LARGEST} times as many test examples would not be enough")
    if seeds:
        ways.append(f"additional seeds of each approach (at least {seeds:,})")
    elif pair.measured:
        limits.append(f"even {LARGEST} times as many seeds would not be enough")
    else:
        limits.append("how many seeds is unknown, because an approach has only one")
    needed = [f"needed for a verdict: {' or '.join(ways)}"] if ways else []
    return "; ".join([*needed, *limits])


def _format(rows: list[list[str]], best: str, margin: float, remarks: list[str]) -> str:
    from tabulate import tabulate

    headers = ["approach", "weighted F1", f"minus {best}", f"at {margin:g}",
               f"at {margin / 2:g}"]  # fmt: skip
    # Otherwise, tabulate would parse the numbers in the texts, and print 0.9100 as 0.91.
    lines = [tabulate(rows, headers=headers, tablefmt="simple", disable_numparse=True), ""]
    lines += remarks
    lines.append(
        "Intervals: 95%, bootstrap over examples (or whole groups) and Student's t over seeds.\n"
        f"Those of differences are simultaneous one-sided bounds for the verdicts at {margin:g}.\n"
        "'as good' and 'worse' are one-sided tests at 5%, corrected for the number of approaches."
    )
    return "\n".join(lines)


def _read_approaches(arguments: Sequence[str]) -> list[Approach]:
    from kinopoisk_ft.data.tables import read_table
    from kinopoisk_ft.statistics.comparison import Approach
    from kinopoisk_ft.statistics.predictions import Predictions

    frames: dict[str, list[tuple[str, pd.DataFrame]]] = {}
    for argument in arguments:
        name, equals, files = argument.partition("=")
        first = Path(argument.split(",")[0])
        # The path of a file without a name may contain "=", as in lr=0.1/predictions.parquet.
        if not equals or first.is_file():
            name, files = first.stem, argument
        if name in frames:
            raise UserError(f"two approaches have the name '{name}'", where=argument,
                            fix="name them: full=a.parquet lora=b.parquet")  # fmt: skip
        paths = files.split(",")
        if not (name and all(paths)):
            raise UserError("a name or a file is missing", where=argument, fix="write name=file")
        # The differences between seeds would seem to be smaller than they are.
        if len({os.path.realpath(os.path.expanduser(path)) for path in paths}) < len(paths):
            raise UserError(f"the approach '{name}' has the same file twice", where=argument,
                            fix="give one file for each seed")  # fmt: skip
        frames[name] = [(file, read_table(file).frame) for file in paths]
    if len(frames) < 2:
        raise UserError("there is only one approach", where="the command line",
                        fix="give at least two: full=a.parquet lora=b.parquet")  # fmt: skip
    tables = [item for items in frames.values() for item in items]
    # A rare class may be missing from one file, so the classes come from all files.
    classes = Predictions.list_classes(tables)
    return [
        Approach(
            name=name,
            # The files contain no seeds, so the n-th file of each approach counts as the same seed.
            seeds=tuple(map(str, range(len(items)))),
            runs=tuple(Predictions.from_names(frame, classes, file) for file, frame in items),
        )
        for name, items in frames.items()
    ]


def _explain(found: Comparison) -> UserError:
    problem = found.problems[0]
    reasons = {"rows": "different rows", "labels": "different labels", "classes": "other classes"}
    return UserError(
        f"the files of {' and '.join(problem.names)} have {reasons[problem.detail]}",
        fix="predict the same test examples with each approach",
    )
