"""Define what a run needs from Hydra: its config, choices, tags and job."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig


@dataclass(frozen=True)
class Job:
    """Describe one job of a sweep.

    Args:
        sweep_dir: output folder of the whole sweep.
        overrides: overrides of this job, without those that only decide where results are written.
        parallel: whether other jobs may run on this machine at the same time (joblib launcher).
        pruner: config of Optuna's pruner if the job is a trial of a search, else None.
    """

    sweep_dir: Path
    number: int
    overrides: list[str]
    parallel: bool
    pruner: Any = None


@dataclass(frozen=True)
class Prepared:
    """Hold what a run needs from Hydra, so that no other code reads Hydra's global state.

    Args:
        cfg: resolved and validated config, which is read-only.
        choices: chosen option by config group, for example {"model": "bert"}.
        tags: tags set at the start of the tracked run: choices, identity digest, command.
        result_file: additional JSON file for the result, if any; each job of a sweep has its own.
        job: the job of a sweep; None for a single run.
    """

    cfg: DictConfig
    choices: dict[str, str]
    tags: dict[str, str]
    result_file: Path | None
    job: Job | None


def flatten(node: Any, prefix: str = "") -> dict[str, Any]:
    """Flatten nested dicts to {"a.b": value}; lists are not flattened."""
    if not isinstance(node, dict):
        return {prefix: node}
    flat: dict[str, Any] = {}
    for key, value in node.items():
        flat |= flatten(value, f"{prefix}.{key}" if prefix else str(key))
    return flat
