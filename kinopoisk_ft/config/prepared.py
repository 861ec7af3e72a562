"""Define what a run needs from Hydra: config, tags and job."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from omegaconf import DictConfig, OmegaConf

# File in the output folder with the tags of a run, such as the command that repeats the run.
TAGS = "tags.json"
# Options that earlier versions did not have, with the values that those versions trained with.
ADDED = {
    "trainer.loss._target_": "kinopoisk_ft.training.losses.cross_entropy",
    "trainer.loss._partial_": True,
    "trainer.min_steps": None,
    "trainer.layer_decay": None,
    "trainer.head_first": False,
    "trainer.gradient_checkpointing": False,
    "data.quoting": "auto",
    "data.train_limit": None,
    "data.window_stride": None,
    "data.max_windows": 8,
    "data.text_prefix": "",
    "model.dtype": "fp32",
    "model.text_prefix": "",
    "model.window_pooling": "mean",
}


@dataclass(frozen=True)
class Job:
    """One job of a sweep.

    Args:
        sweep_dir: output folder of the whole sweep.
        overrides: overrides of this job, except for output_dir, result_json and tracking.
        parallel: whether other jobs may run on this machine at the same time.
        pruner: config of Optuna's pruner; None if the job is not a trial of a search.
    """

    sweep_dir: Path
    number: int
    overrides: list[str]
    parallel: bool
    pruner: Any = None


@dataclass(frozen=True)
class Prepared:
    """Everything that a run needs from Hydra.

    The code of a run reads this object instead of Hydra's global state.

    Args:
        cfg: resolved, validated and read-only config.
        tags: tags of the tracked run, such as the chosen option of each config group.
        result_file: file for a copy of result.json, from the option `result_json`; None if this
            option is not set.
        job: job of a sweep; None for a single run.
    """

    cfg: DictConfig
    tags: dict[str, str]
    result_file: Path | None
    job: Job | None

    @property
    def label(self) -> str:
        """Return the name of the approach, such as "rubert-tiny2 + lora" or "bert".

        The name of the checkpoint replaces the word "encoder".
        """
        name = str(self.cfg.model.get("name") or "")
        return name_checkpoint(self.tags["approach"], self.tags["model"], name)


def name_checkpoint(approach: str, model: str, name: str) -> str:
    """Replace "encoder" in the name of an approach by the last part of the checkpoint's name.

    Args:
        model: the chosen option of the config group `model`. If it is not `encoder`, the name of
            the approach does not change, because the option already names the checkpoint.
        name: hub id or folder of the checkpoint; "" if it is unknown.
    """
    checkpoint = PurePath(name).name
    if model == "encoder" and checkpoint:
        return approach.replace("encoder", checkpoint, 1)
    return approach


def flatten(node: Any, prefix: str = "") -> dict[str, Any]:
    """Flatten nested dicts to {"a.b": value}; lists are kept as values."""
    if not isinstance(node, dict):
        return {prefix: node}
    flat: dict[str, Any] = {}
    for key, value in node.items():
        flat |= flatten(value, f"{prefix}.{key}" if prefix else str(key))
    return flat


def list_differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Return a line for each key whose values differ, such as "trainer.lr: 0.1 before, 0.2 now"."""
    # None is a valid value, so absent keys need another marker.
    missing = object()
    return [
        f"{key}: {before.get(key, 'not set')!r} before, {now.get(key, 'not set')!r} now"
        for key in sorted({*before, *now})
        if before.get(key, missing) != now.get(key, missing)
    ]


def get_overrides(hydra: Any) -> list[str]:
    """Return the overrides of a run as the user wrote them; ${...} is not resolved."""
    overrides: Any = OmegaConf.to_container(hydra.overrides.task, resolve=False)
    return list(overrides)
