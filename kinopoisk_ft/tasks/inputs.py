"""Define the inputs for training a classifier."""

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
    """The inputs for training a classifier, except the model.

    Args:
        out_dir: output folder of the run; the model is saved in the subfolder `model`.
        options: the config node `model`, saved in order to rebuild the network later.
    """

    adapter: Adapter
    trainer: Trainer
    data: DataSplit
    tracker: Tracker
    out_dir: Path
    options: dict[str, Any]
