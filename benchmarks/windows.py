"""Compare the training time per token of whole reviews in windows with that of one window.

    python benchmarks/windows.py --json windows.json --markdown windows.md

Both sides train on the same real reviews in windows of 256 tokens: `data.truncation=head` reads one
window of each review, and `data.truncation=windows` reads all of them, which overlap by a quarter.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from common.report import Section
from common.sides import Experiment, publish_table, run_project
from common.timing import ratios, take_turns

from kinopoisk_ft.training.precision import Precision

# The first step of a process takes longer, so a side with fewer tokens needs enough steps.
WORK = Experiment("full", limit=400)
# The pooler of transformers cannot read windows.
POOLING = ("model.pooling=mean",)
ONE, ALL = "one window", "all windows"
READS = {ONE: "head", ALL: "windows"}


def compare(args: argparse.Namespace) -> Section:
    """Train on both alternately; return a section with a row for each."""
    work, rounds = (replace(WORK, limit=50), 1) if args.quick else (WORK, 3)
    precision = Precision("auto", torch.device("cpu")).kind
    turns = {
        name: partial(
            run_project, replace(work, project=(*POOLING, f"data.truncation={way}")),
            args.model, args.data, precision,
        )
        for name, way in READS.items()
    }  # fmt: skip
    runs = take_turns(turns, rounds)
    rates = {name: [run["tokens_per_second"] for run in found] for name, found in runs.items()}
    rows: list[dict[str, Any]] = [
        {"reads": name, "tokens per second": statistics.median(rate)}
        # Time per token is the inverse of the rate.
        | {f"time per token, {key}": value for key, value in ratios(rates[ONE], rate).items()}
        | {"MiB": round(max(run["mib"] for run in runs[name]))}
        for name, rate in rates.items()
    ]
    note = (
        f"Full fine-tuning of e5-small-ru in {precision} with {POOLING[0]}, "
        f"data.limit={work.limit}, one epoch in batches of 16 reviews, so a step has more tokens "
        "with all windows. `tokens per second`: tokens of all windows, without padding, per second "
        "of training without validation; tokens where windows overlap count in each of them. `time "
        f"per token`: relative to one window, median, minimum and maximum of {rounds} rounds. MiB: "
        "peak memory of training in all rounds."
    )
    return Section("A training epoch", note, rows)


if __name__ == "__main__":
    remark = "Freed memory stays in the process, as in training by default."
    sys.exit(publish_table(__doc__, "Whole reviews", compare, remark))
