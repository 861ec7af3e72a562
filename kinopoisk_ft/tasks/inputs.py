"""Collect everything that training a classifier needs besides the model's recipe."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kinopoisk_ft.adapters.base import Adapter
from kinopoisk_ft.data.recipe import DataSplit
from kinopoisk_ft.tracking.base import Tracker
from kinopoisk_ft.training.loop import Trainer


@dataclass(frozen=True)
class FitInputs:
    """Hold the inputs of one fit.

    Args:
        out_dir: the run's folder; the model is saved in its subfolder `model`.
        options: the config group `model` as plain values; a saved network is rebuilt from them.
    """

    adapter: Adapter
    trainer: Trainer
    data: DataSplit
    tracker: Tracker
    out_dir: Path
    options: dict[str, Any]
