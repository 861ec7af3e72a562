"""Run the task `finetune`: train a classifier and score it once on the test split."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from omegaconf import OmegaConf

from kinopoisk_ft.data.recipe import DataSplit
from kinopoisk_ft.tasks.baseline import check_baseline, fit_baseline
from kinopoisk_ft.tasks.record import record, record_data
from kinopoisk_ft.tasks.result import Result
from kinopoisk_ft.tracking.base import Tracker
from kinopoisk_ft.training.distributed.processes import is_main, main_first


def finetune(cfg: Any, tracker: Tracker, run_id: str, out_dir: Path) -> Result | None:
    """Train a classifier and score the best weights once on the test split.

    Returns:
        The result on rank 0; None in other processes.
    """
    recipe, adapter, trainer = (instantiate(cfg[key]) for key in ("model", "adapter", "trainer"))
    # All checks come before the data, so that a mistake is reported without a long wait.
    recipe.check_dtype(adapter, trainer.strategy)
    if trainer.gradient_checkpointing:
        recipe.check_gradient_checkpointing()
        adapter.check_gradient_checkpointing()
    # The other ranks read what rank 0 has downloaded.
    with main_first():
        if recipe.is_network:
            # TF-IDF needs neither PEFT nor transformers, which take seconds to import.
            from kinopoisk_ft.tasks.fit_network import FitInputs, check_network, fit_network

            check_network(recipe, adapter, trainer)
        else:
            check_baseline(adapter, trainer)
        data: DataSplit = instantiate(cfg.data).load()
    # Recorded before training, so that a run that fails later shows its data, too.
    record_data(data, cfg.data, tracker, out_dir)
    if cfg.tuning_trials is not None:
        tracker.metrics({"tuning_trials": cfg.tuning_trials}, 0)
    if recipe.is_network:
        # The card of the model is JSON, which needs plain dicts and lists.
        options: Any = OmegaConf.to_container(cfg.model)
        inputs = FitInputs(adapter, trainer, data, tracker, out_dir, options)
        fitted = fit_network(recipe, inputs)
    else:
        fitted = fit_baseline(recipe, trainer, data, out_dir)
    return record(fitted, data, tracker, run_id, out_dir) if is_main() else None
