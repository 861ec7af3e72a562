"""Name the folders that tests read."""

from __future__ import annotations

from pathlib import Path

HELPERS = Path(__file__).resolve().parent
ROOT = HELPERS.parents[1]
# Files that earlier versions wrote.
SAVED = HELPERS / "saved"
