"""Write the report to files, and log these files to MLflow."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from matplotlib.figure import Figure
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from kinopoisk_ft.errors import UserError
from kinopoisk_ft.reporting.data_files import as_csv, as_json, as_latex, differences_csv, slices_csv
from kinopoisk_ft.reporting.document import STEM, Document
from kinopoisk_ft.reporting.locale import Locale
from kinopoisk_ft.reporting.markdown import as_markdown
from kinopoisk_ft.reporting.page.render import as_html
from kinopoisk_ft.reporting.plots import comparison_plots, scatter
from kinopoisk_ft.reporting.plots.looks import Looks
from kinopoisk_ft.reporting.plots.run_plots import save_both
from kinopoisk_ft.reporting.run_files import RunFiles
from kinopoisk_ft.reporting.runs import TrainedRun
from kinopoisk_ft.reporting.saved_view import describe_sweep
from kinopoisk_ft.reporting.table import Table

PREFIX = ".report-"
# Temporary folders of more than this age, in seconds, are from killed processes.
LEFT_OVER = 3600.0
FIGURES: dict[str, Callable[[Table, Locale, Looks], Figure]] = {
    "comparison": scatter.draw,
    "differences": comparison_plots.draw_differences,
    "calibration": comparison_plots.draw_calibration,
}
FOLDER = "report"


def write(document: Document, files: RunFiles, locale: Locale, folder: Path) -> list[Path]:
    """Write the files of the report, and return their paths.

    Files of an earlier report are replaced only after all new files are complete.

    Raises:
        UserError: the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _delete_left_over(folder)
        # `os.replace` works only within one file system, so write inside the output folder.
        with tempfile.TemporaryDirectory(dir=folder, prefix=PREFIX) as name:
            made = Path(name)
            texts = {
                ".md": as_markdown(document, locale),
                ".csv": as_csv(document),
                ".json": as_json(document, locale.language),
                ".html": as_html(document, files, locale),
                ".tex": as_latex(document, locale),
                "-differences.csv": differences_csv(document),
                "-slices.csv": slices_csv(document),
            }
            parts = []
            for ending, text in texts.items():
                parts.append(made / f"{STEM}{ending}")
                # The line ends are the same on all systems, so that equal reports have equal bytes.
                parts[-1].write_text(text, encoding="utf-8", newline="\n")
            for section in document.sections:
                for what, stem in section.pictures.items():
                    figure = FIGURES[what](section.table, locale, document.looks)
                    parts += save_both(figure, made, stem)
            for curves in document.curves:
                figure = comparison_plots.draw_label_curves(curves, locale, document.looks)
                parts += save_both(figure, made, curves.stem)
            for part in parts:
                os.replace(part, folder / part.name)
    except OSError as error:
        raise UserError(
            f"the report cannot be written: {error.strerror or error}",
            where=str(folder),
            fix="set --output to a writable folder",
        ) from error
    return [folder / part.name for part in parts]


def _delete_left_over(folder: Path) -> None:
    for old in folder.glob(f"{PREFIX}*"):
        if time.time() - old.stat().st_mtime > LEFT_OVER:
            shutil.rmtree(old, ignore_errors=True)


def parent_of(runs: Iterable[TrainedRun]) -> str | None:
    """Return the run id of the sweep to which all runs belong, or None."""
    # A run outside of a sweep has an empty parent.
    parents = {run.parent for run in runs}
    return (parents.pop() or None) if len(parents) == 1 else None


def log_report(
    client: MlflowClient, parent: str, document: Document, paths: Sequence[Path], locale: Locale
) -> None:
    """Log the report to the MLflow run `parent`, and show its results in the MLflow UI."""
    try:
        # The description of the run refers to these files, so they are logged first.
        for path in paths:
            client.log_artifact(parent, str(path), FOLDER)
        describe_sweep(client, parent, document, locale, has_files=True)
    except (MlflowException, OSError) as error:
        raise UserError(
            f"the report was written but not logged to MLflow: {str(error).splitlines()[0]}",
            where=f"run {parent}",
            fix="add --no-log to only write the report to disk",
        ) from error
