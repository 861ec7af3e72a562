"""Run the task `finetune`: train a classifier and score it once on the test split."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from omegaconf import OmegaConf

from kinopoisk_ft.adapters.base import Adapter
from kinopoisk_ft.data.recipe import DataSplit
from kinopoisk_ft.models.network import ModelRecipe
from kinopoisk_ft.models.tfidf import Tfidf
from kinopoisk_ft.tasks.baseline import check_baseline, fit_baseline
from kinopoisk_ft.tasks.inputs import FitInputs
from kinopoisk_ft.tasks.record import record, record_data
from kinopoisk_ft.tasks.result import Fitted, Result
from kinopoisk_ft.tracking.base import Tracker
from kinopoisk_ft.training.distributed.processes import is_main, main_first
from kinopoisk_ft.training.loop import Trainer


def finetune(cfg: Any, tracker: Tracker, run_id: str, out_dir: Path) -> Result | None:
    """Train a classifier and score the best weights once on the test split.

    Returns:
        The result on rank 0; None in other processes.
    """
    recipe, adapter, trainer = (instantiate(cfg[key]) for key in ("model", "adapter", "trainer"))
    recipe.check_dtype(adapter, trainer.strategy)
    if trainer.gradient_checkpointing:
        recipe.check_gradient_checkpointing()
        adapter.check_gradient_checkpointing()
    with main_first():
        recipe.fit(SupportChecks(adapter, trainer))
        data: DataSplit = instantiate(cfg.data).load()
    record_data(data, cfg.data, tracker, out_dir)
    if cfg.tuning_trials is not None:
        tracker.metrics({"tuning_trials": cfg.tuning_trials}, 0)
    options: Any = OmegaConf.to_container(cfg.model)
    inputs = FitInputs(adapter, trainer, data, tracker, out_dir, options)
    fitted: Fitted = recipe.fit(ClassifierFitMethods(inputs))
    return record(fitted, data, tracker, run_id, out_dir) if is_main() else None


@dataclass(frozen=True)
class SupportChecks:
    """The checks before data are read; the `fit` method of the model calls one of them."""

    adapter: Adapter
    trainer: Trainer

    def fit_network(self, recipe: ModelRecipe) -> None:
        """Check that the architecture supports the adapter and the prefix cache."""
        # TF-IDF needs neither PEFT nor transformers, which take seconds to import.
        from kinopoisk_ft.tasks.fit_network import check_network

        check_network(recipe, self.adapter, self.trainer)

    def fit_estimator(self, recipe: Tfidf) -> None:
        """Check the options that an estimator does not support."""
        check_baseline(self.adapter, self.trainer)


@dataclass(frozen=True)
class ClassifierFitMethods:
    """The two ways to train a classifier; the `fit` method of the model calls one of them."""

    inputs: FitInputs

    def fit_network(self, recipe: ModelRecipe) -> Fitted:
        """Train a network by gradient descent on batches of token ids."""
        # TF-IDF needs neither PEFT nor transformers, which take seconds to import.
        from kinopoisk_ft.tasks.fit_network import fit_network

        return fit_network(recipe, self.inputs)

    def fit_estimator(self, recipe: Tfidf) -> Fitted:
        """Fit an estimator on whole texts."""
        return fit_baseline(recipe, self.inputs)
