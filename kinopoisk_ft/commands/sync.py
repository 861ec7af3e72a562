"""`python -m kinopoisk_ft.sync <folder> …`: send runs to MLflow that were made without it."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections import Counter
from pathlib import Path

from kinopoisk_ft.console import ends_quietly
from kinopoisk_ft.errors import UserError


@ends_quietly
def main(argv: list[str] | None = None) -> int:
    """Send what lies in folders; returns 0, 1 if something could not be sent, or 130."""
    parser = argparse.ArgumentParser(
        prog="python -m kinopoisk_ft.sync",
        description="Send runs to MLflow that were made offline (tracking=offline), or while the "
        "store gave no answer. A run keeps its times, and nothing is sent twice, however often "
        "this is run or broken off.",
        epilog="Exit code: 0 if the store has all, else 1. A run that goes on is left alone.",
    )
    parser.add_argument("folders", nargs="+", type=Path, metavar="folder",
                        help="output_dir of a run or a sweep, or one above it")  # fmt: skip
    parser.add_argument("--uri", help="MLflow store (the run's own if it is in reach, else "
                        "MLFLOW_TRACKING_URI, else ./mlflow.db)")  # fmt: skip
    parser.add_argument("--experiment", help="its name (the run's own)")
    parser.add_argument("--died-as", default="KILLED", choices=["KILLED", "FAILED"],
                        help="status of a run whose process died (%(default)s)")  # fmt: skip
    args = parser.parse_args(argv)
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    from kinopoisk_ft.tracking.sending import send_all

    fates: Counter[str] = Counter()
    refused = 0
    try:
        for shipment in send_all(args.folders, args.uri, args.experiment, args.died_as):
            if shipment.error:
                where = f"{shipment.name} ({shipment.folder})"
                print(f"error: {where}: {shipment.error}", file=sys.stderr, flush=True)
            elif shipment.fate != "was sent" or shipment.refused:
                print(shipment.line(), flush=True)
            fates[shipment.fate] += 1
            refused += len(shipment.refused)
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: the same command goes on, nothing is sent twice", file=sys.stderr)
        return 130
    shown = ("sent", "was sent", "goes on", *(["not sent"] if fates["not sent"] else []))
    print("runs: " + ", ".join(f"{fates[fate]} {fate}" for fate in shown))
    return 1 if refused or fates["not sent"] else 0
