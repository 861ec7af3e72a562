"""The report's files: all are made before the first of them takes its place."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from pathlib import Path

from kinopoisk_ft.errors import UserError
from kinopoisk_ft.reporting.calibration_picture import calibration_picture
from kinopoisk_ft.reporting.details import Material
from kinopoisk_ft.reporting.document import Document
from kinopoisk_ft.reporting.findings import differences_csv, slices_csv
from kinopoisk_ft.reporting.forest import forest_picture
from kinopoisk_ft.reporting.formats import as_markdown
from kinopoisk_ft.reporting.latex import as_latex
from kinopoisk_ft.reporting.page.render import as_html
from kinopoisk_ft.reporting.records import as_csv, as_json
from kinopoisk_ft.reporting.scatter import comparison_picture
from kinopoisk_ft.reporting.words import Words

STEM = "comparison"
PREFIX = ".report-"
# Seconds after which nobody writes to a temporary folder any more: a report takes a minute.
LEFT_OVER = 3600.0
PICTURES = {
    "comparison": comparison_picture,
    "differences": forest_picture,
    "calibration": calibration_picture,
}


def write(document: Document, material: Material, words: Words, folder: Path) -> list[Path]:
    """Write tables and pictures to the folder and return their paths.

    A failure leaves earlier files as they were. Raises UserError where the folder cannot be
    written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _delete_left_over(folder)
        with tempfile.TemporaryDirectory(dir=folder, prefix=PREFIX) as name:
            made = Path(name)
            texts = {
                ".md": as_markdown(document, words),
                ".csv": as_csv(document),
                ".json": as_json(document, words.language),
                ".html": as_html(document, material, words),
                ".tex": as_latex(document, words),
                "-differences.csv": differences_csv(document),
                "-slices.csv": slices_csv(document),
            }
            parts = []
            for ending, text in texts.items():
                parts.append(made / f"{STEM}{ending}")
                parts[-1].write_text(text, encoding="utf-8", newline="\n")
            for section in document.sections:
                for what, stem in section.pictures.items():
                    parts += PICTURES[what](section.table, words, made, stem)
            for part in parts:
                os.replace(part, folder / part.name)
    except OSError as error:
        reason = error.strerror or str(error)
        fix = "give --output a folder that can be written"
        raise UserError(
            f"the report cannot be written: {reason}", where=str(folder), fix=fix
        ) from error
    return [folder / part.name for part in parts]


def _delete_left_over(folder: Path) -> None:
    """Delete the temporary folders of reports that were killed."""
    for old in folder.glob(f"{PREFIX}*"):
        if time.time() - old.stat().st_mtime > LEFT_OVER:
            shutil.rmtree(old, ignore_errors=True)
