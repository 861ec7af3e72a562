"""Define what training a classifier needs in addition to its `ModelRecipe`."""

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
    """Hold what training a classifier needs in addition to its `ModelRecipe`.

    Args:
        out_dir: output folder of the run; the model is saved in its subfolder `model`.
        options: the config node `model` as a plain dict, from which a saved network is rebuilt.
    """

    adapter: Adapter
    trainer: Trainer
    data: DataSplit
    tracker: Tracker
    out_dir: Path
    options: dict[str, Any]
