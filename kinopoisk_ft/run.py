"""The table of contents of a run: data, model, adapter, trainer, result."""

from __future__ import annotations

import logging
import shlex
import traceback
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import OmegaConf

from kinopoisk_ft.config import Prepared
from kinopoisk_ft.data.recipe import DataSplit
from kinopoisk_ft.environment import commit
from kinopoisk_ft.fitting import fit_baseline, fit_network
from kinopoisk_ft.models.baseline import Tfidf
from kinopoisk_ft.quiet import quiet_libraries
from kinopoisk_ft.record import record, record_data
from kinopoisk_ft.result import Result
from kinopoisk_ft.tracking.base import Tracker
from kinopoisk_ft.training.signals import StopSignals
from kinopoisk_ft.unfinished import Unfinished

log = logging.getLogger(__name__)


def run(prepared: Prepared, out_dir: Path) -> Result:
    """Run the task of a checked config; a failure is recorded as such and raised again."""
    quiet_libraries()
    cfg = prepared.cfg
    tracker: Tracker = instantiate(cfg.tracking)
    plain: Any = OmegaConf.to_container(cfg)
    unfinished = Unfinished(out_dir, plain)
    with StopSignals():
        name, tags = approach(prepared.choices), _tags(prepared)
        run_id = tracker.start(name, plain, tags, unfinished.reopen())
        try:
            unfinished.begin(run_id)
            OmegaConf.save(cfg, out_dir / "config.yaml")
            tracker.artifact(out_dir / "config.yaml")
            result: Result = instantiate(cfg.task)(cfg, tracker, run_id, out_dir)
        except BaseException as error:
            _fail(tracker, error, out_dir)
            raise
        tracker.finish("FINISHED")
        unfinished.end()
    print(f"{approach(prepared.choices)}\n{result.table()}")
    if cfg.result_json:
        result.write(_result_file(cfg.result_json))
    return result


def finetune(cfg: Any, tracker: Tracker, run_id: str, out_dir: Path) -> Result:
    """Train a classifier on the train split, choose by validation, score on the test split once."""
    recipe, adapter, trainer = (instantiate(cfg[key]) for key in ("model", "adapter", "trainer"))
    data: DataSplit = instantiate(cfg.data).load()
    record_data(data, tracker, out_dir)
    if isinstance(recipe, Tfidf):
        fitted = fit_baseline(recipe, adapter, trainer, data, out_dir)
    else:
        fitted = fit_network(recipe, adapter, trainer, data, tracker, out_dir)
    return record(fitted, data, tracker, run_id, out_dir)


def _fail(tracker: Tracker, error: BaseException, out_dir: Path) -> None:
    """Record a failure as well as the disk and the store let us: the error itself is to be told."""
    try:
        (out_dir / "traceback.txt").write_text(traceback.format_exc(), encoding="utf-8")
        tracker.artifact(out_dir / "traceback.txt")
        tracker.tags({"error": str(error)[:500]})
        tracker.finish("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
    except Exception as second:
        log.warning("the failure could not be recorded: %s", second)


def approach(choices: dict[str, str]) -> str:
    """Return what a table calls this run: "bert", or "bert + lora"."""
    model, adapter = choices["model"], choices["adapter"]
    return model if adapter == "none" else f"{model} + {adapter}"


def _tags(prepared: Prepared) -> dict[str, str]:
    choices = prepared.choices
    chosen = {key: choices[key] for key in ("model", "adapter", "data", "experiment")}
    return {
        **chosen,
        "kinopoisk_ft.kind": "train" if choices["task"] == "finetune" else choices["task"],
        "approach": approach(choices),
        "seed": str(prepared.cfg.seed),
        "commit": commit(),
        "overrides": shlex.join(prepared.overrides),
    }


def _result_file(path: str) -> Path:
    """Return where the result goes: a job of a sweep puts its number before the ending."""
    file, hydra = Path(path), HydraConfig.get()
    if hydra.mode == RunMode.MULTIRUN:
        return file.with_name(f"{file.stem}.{hydra.job.num}{file.suffix}")
    return file
