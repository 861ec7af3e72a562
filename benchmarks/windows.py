"""Compare the training time per token of whole reviews in windows with that of one window.

    python benchmarks/windows.py --json windows.json --markdown windows.md

Both sides train on real reviews in windows of 256 tokens: `data.truncation=head` reads one window
of each review, and `data.truncation=windows` reads all of them, which overlap by a quarter.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from dataclasses import replace
from typing import Any

from common.report import Section, command_line, publish
from common.sides import Experiment, absent, add_inputs, run_project

WORK = Experiment("full", limit=200)
READS = {"one window": "head", "all windows": "windows"}


def main() -> int:
    """Run the command line; return the exit code."""
    parser = command_line(__doc__)
    add_inputs(parser)
    args = parser.parse_args()
    if not absent(args):
        publish("Whole reviews", [compare(args)], args, "Freed memory stays in the process.")
    return 0


def compare(args: argparse.Namespace) -> Section:
    """Train on both alternately; return a section with a row for each."""
    work, rounds = (replace(WORK, limit=50), 1) if args.quick else (WORK, 3)
    found: dict[str, list[dict[str, float]]] = {name: [] for name in READS}
    for _ in range(rounds):
        for name, runs in found.items():
            one = replace(work, project=(f"data.truncation={READS[name]}",))
            runs.append(run_project(one, args.model, args.data, "auto"))
    tokens = {
        name: statistics.median(run["tokens_per_second"] for run in runs)
        for name, runs in found.items()
    }
    rows: list[dict[str, Any]] = [
        {"reads": name, "tokens per second": rate, "time per token": tokens["one window"] / rate,
         "MiB": round(max(run["mib"] for run in found[name]))}
        for name, rate in tokens.items()
    ]  # fmt: skip
    note = (
        f"Full fine-tuning of e5-small-ru, data.limit={work.limit}, an epoch, precision auto. "
        "`tokens per second`: tokens of all windows, without padding; tokens where windows overlap "
        "count in each of them. `time per token`: relative to one window. MiB: peak memory of the "
        "process."
    )
    return Section("A training step", note, rows)


if __name__ == "__main__":
    sys.exit(main())
