"""All that training a classifier needs besides the recipe of the model."""

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
    """The inputs of one fit.

    Args:
        out_dir: the run's folder; the model goes into its folder `model`.
        options: the group `model` as plain values, from which a saved network is built again.
    """

    adapter: Adapter
    trainer: Trainer
    data: DataSplit
    tracker: Tracker
    out_dir: Path
    options: dict[str, Any]
