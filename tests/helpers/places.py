"""The folders that tests read."""

from __future__ import annotations

from pathlib import Path

HELPERS = Path(__file__).resolve().parent
ROOT = HELPERS.parents[1]
SAVED = HELPERS / "saved"  # written by earlier versions
