"""Implement `kinopoisk-ft sync`, which sends runs to MLflow if they are not there yet."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections import Counter
from pathlib import Path

from kinopoisk_ft.console import handle_errors


@handle_errors
def main(argv: list[str] | None = None) -> int:
    """Send runs to MLflow. Return 1 if an event was not sent, 130 after Ctrl-C, else 0."""
    parser = argparse.ArgumentParser(
        prog="kinopoisk-ft sync",
        description="Send runs to MLflow that were made offline (tracking=offline) or while the "
        "store did not answer. Runs keep their times. Nothing is sent twice, even if this command "
        "is interrupted and run again.",
        epilog="Exit code: 0 if the store has everything, else 1. Runs in progress are skipped.",
    )
    parser.add_argument("folders", nargs="+", type=Path, metavar="folder",
                        help="output_dir of a run or a sweep, or a folder above it")  # fmt: skip
    parser.add_argument("--uri", help="MLflow store (default: the run's own store if it can be "
                        "reached, else MLFLOW_TRACKING_URI, else ./mlflow.db)")  # fmt: skip
    parser.add_argument("--experiment", help="experiment name (default: the run's own)")
    parser.add_argument("--died-as", default="KILLED", choices=["KILLED", "FAILED"],
                        help="status of a run whose process died (%(default)s)")  # fmt: skip
    args = parser.parse_args(argv)
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    # Imported late, so that --help and wrong arguments are answered at once.
    from kinopoisk_ft.tracking.sync_runs import sync_folders

    counts: Counter[str] = Counter()
    refused = 0
    try:
        for synced in sync_folders(args.folders, args.uri, args.experiment, args.died_as):
            if synced.status == "not sent":
                print(f"error: {synced.text}", file=sys.stderr, flush=True)
            elif synced.status != "already sent" or synced.refused:
                print(synced.text, flush=True)
            counts[synced.status] += 1
            # The store may refuse single events of a run, although the run itself is sent.
            refused += synced.refused
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: run the same command again, nothing is sent twice", file=sys.stderr)
        # Shells report 128 plus the number of the signal, which is 2 for SIGINT (Ctrl-C).
        return 130
    always = ("sent", "already sent", "still running")
    shown = (*always, "not sent") if counts["not sent"] else always
    print("runs: " + ", ".join(f"{counts[status]} {status}" for status in shown))
    return 1 if refused or counts["not sent"] else 0
