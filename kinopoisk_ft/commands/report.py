"""Implement `kinopoisk-ft report`, which compares finished runs."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import textwrap
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from kinopoisk_ft.console import handle_errors
from kinopoisk_ft.errors import UserError, suggest_name
from kinopoisk_ft.files import prepare_caches
from kinopoisk_ft.text import hide_password

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from kinopoisk_ft.reporting.document import Document
    from kinopoisk_ft.reporting.run_files import RunFiles

# Options with a value. They may be written without dashes, as in a training command.
OPTIONS = ("uri", "experiment", "parent", "output", "language", "explain")


@handle_errors
def main(argv: list[str] | None = None) -> None:
    """Compare finished runs."""
    options = _build_parser().parse_args(_add_dashes(sys.argv[1:] if argv is None else argv))
    # Libraries read the location of their cache folders on import, so this call comes first.
    prepare_caches()
    _hide_progress_bars()
    # MLflow's default of 7 retries takes minutes if no server answers.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    from mlflow.exceptions import MlflowException

    from kinopoisk_ft.reporting.document import build
    from kinopoisk_ft.reporting.folds import pool_folds
    from kinopoisk_ft.reporting.locale import Locale
    from kinopoisk_ft.reporting.output import FOLDER, log_report, parent_of, write
    from kinopoisk_ft.reporting.page.hardest_reviews import MOST_SHOWN
    from kinopoisk_ft.reporting.run_files import load_run_files
    from kinopoisk_ft.reporting.runs import collect
    from kinopoisk_ft.reporting.summary import as_summary
    from kinopoisk_ft.tracking.store import default_uri, open_store

    if not 0 <= options.explain <= MOST_SHOWN:
        raise UserError(
            f"--explain {options.explain} is not a number of reviews that the page shows",
            fix=f"use 0 to {MOST_SHOWN}",
        )
    locale = Locale(options.language)
    uri = options.uri or default_uri()
    try:
        client = open_store(uri)
        collected = collect(client, options.experiment, options.parent)
        collected, files = pool_folds(collected, load_run_files(client, collected.runs))
    except MlflowException as error:
        reason = textwrap.shorten(hide_password(error.message), 200, placeholder=" …")
        raise UserError(
            f"MLflow cannot read the store: {reason}",
            where=hide_password(uri),
            fix="check --uri and MLFLOW_TRACKING_URI",
        ) from error
    # The tables decide which reviews are the hardest, so they are built before `_explain`.
    document = build(collected, files.predictions, options.parent, locale)
    if options.explain:
        files = _explain(document, files, options.explain, client, uri)
    paths = write(document, files, locale, options.output)
    page = next(path for path in paths if path.suffix == ".html")
    print(f"{as_summary(document, locale)}\n\n{locale('written', page=page, count=len(paths) - 1)}")
    # Without --parent, the report is logged if all runs belong to the same sweep.
    if not options.no_log and (parent := options.parent or parent_of(collected.runs)):
        log_report(client, parent, document, paths, locale)
        print(locale("logged", parent=parent, folder=FOLDER, view=locale("view")))


def _build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="kinopoisk-ft report",
        description="Compare finished runs: one page (HTML), a table (Markdown, CSV, JSON, "
        "LaTeX), plots (PNG, SVG), conclusions and recommendations.",
        epilog="Options with a value may also be written as in a training command: language=ru",
    )
    parser.add_argument(
        "--uri", help="MLflow store (default: MLFLOW_TRACKING_URI, or else ./mlflow.db)"
    )
    parser.add_argument(
        "--experiment", default="kinopoisk_ft", help="experiment name (default: %(default)s)"
    )
    parser.add_argument(
        "--parent",
        metavar="RUN_ID",
        help="compare the runs of one sweep, given the id of its parent run, in any experiment",
    )
    parser.add_argument(
        "--output", type=Path, default=Path("report"), help="output folder (default: %(default)s)"
    )
    parser.add_argument("--language", default="en", help="en or ru (default: %(default)s)")
    parser.add_argument(
        "--explain",
        type=int,
        default=0,
        metavar="N",
        help="shade the words that decided each approach's answers to the N hardest reviews (at "
        "most 10) on the page; this loads the models and takes about a minute per answer "
        "(default: 0)",
    )
    parser.add_argument(
        "--no-log", action="store_true", help="do not log the report to the sweep's parent run"
    )
    return parser


def _add_dashes(args: list[str]) -> list[str]:
    dashed: list[str] = []
    for arg in args:
        name, equals, value = arg.partition("=")
        if arg.startswith("-") or not equals:
            dashed.append(arg)
        elif name in OPTIONS:
            dashed.append(f"--{name}={value}")
        # The value of the previous option, such as a URI, contains a "=".
        elif dashed and dashed[-1] in {f"--{option}" for option in OPTIONS}:
            dashed.append(arg)
        else:
            raise UserError(f"there is no option '{name}'", fix=suggest_name(name, OPTIONS))
    return dashed


def _hide_progress_bars() -> None:
    # Otherwise MLflow prints a progress bar for each small file, between the lines of the table.
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")


def summarize_sweep(uri: str, parent: str) -> str:
    """Return a text with a summary of the runs of a sweep and the commands that show more.

    The summary also becomes the description of the sweep's parent run, whose id is `parent`.
    """
    _hide_progress_bars()
    from mlflow.exceptions import MlflowException

    from kinopoisk_ft.reporting.document import build
    from kinopoisk_ft.reporting.folds import pool_folds
    from kinopoisk_ft.reporting.locale import Locale
    from kinopoisk_ft.reporting.run_files import load_run_files
    from kinopoisk_ft.reporting.runs import collect
    from kinopoisk_ft.reporting.saved_view import describe_sweep
    from kinopoisk_ft.reporting.summary import as_summary
    from kinopoisk_ft.tracking.store import absolute_uri, open_store

    locale, place = Locale("en"), f"--uri {shlex.quote(hide_password(absolute_uri(uri)))}"
    try:
        client = open_store(absolute_uri(uri))
        collected = collect(client, "", parent)
        collected, files = pool_folds(collected, load_run_files(client, collected.runs))
        document = build(collected, files.predictions, parent, locale)
        text = as_summary(document, locale)
        # A sweep ends without report files, so its description names the command that writes them.
        describe_sweep(client, parent, document, locale, has_files=False)
    except (UserError, MlflowException) as error:
        # The jobs themselves have succeeded.
        text = f"no summary: {error.what if isinstance(error, UserError) else error.message}"
    return (
        f"{text}\n\nAll tables and figures: kinopoisk-ft report --parent {parent} {place}\n"
        f"In MLflow:              kinopoisk-ft ui {place}"
    )


def _explain(
    document: Document, files: RunFiles, count: int, client: MlflowClient, uri: str
) -> RunFiles:
    from kinopoisk_ft.reporting.page.hardest_reviews import find_hardest
    from kinopoisk_ft.serving.attributions import shade_html
    from kinopoisk_ft.serving.run_explanations import explain_runs

    shaded: dict[tuple[str, int], str] = {}
    for section in document.sections:
        rows, runs = find_hardest(section.table, files.predictions, count)
        if rows:
            # A pooled run stands for the runs of all folds, each with its own test split.
            tested = {
                (name, row): files.folds.get(run_id, {}).get(row, run_id)
                for name, run_id in runs.items()
                for row in rows
            }
            found = explain_runs(client, uri, tested)
            # Tables for different numbers of labels have the same approaches, so keys use run ids.
            shaded |= {(runs[name], row): shade_html(one) for (name, row), one in found.items()}
    return replace(files, shaded=shaded)
