"""Describe a run: the validated config, and what Hydra knows about the command."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig


@dataclass(frozen=True)
class Job:
    """Describe one job of a sweep.

    Args:
        overrides: the overrides of this job, without those that choose where results are written.
        parallel: whether other jobs may run at the same time.
        pruner: config of the pruner if the job is a trial of a search.
    """

    sweep_dir: Path
    number: int
    overrides: list[str]
    parallel: bool
    pruner: Any = None


@dataclass(frozen=True)
class Prepared:
    """Describe a validated run, so that no other code has to read Hydra's own state.

    Args:
        cfg: resolved and read-only.
        choices: option by config group, for example {"model": "bert"}.
        tags: tags that the tracked run has from its start: choices, identity, command.
        result_file: JSON file for the result; for a job of a sweep, its name has the job's number.
        job: None if the run is not part of a sweep.
    """

    cfg: DictConfig
    choices: dict[str, str]
    tags: dict[str, str]
    result_file: Path | None
    job: Job | None


def flatten(node: Any, prefix: str = "") -> dict[str, Any]:
    """Flatten nested dicts to {"a.b": value}; lists stay values."""
    if not isinstance(node, dict):
        return {prefix: node}
    flat: dict[str, Any] = {}
    for key, value in node.items():
        flat |= flatten(value, f"{prefix}.{key}" if prefix else str(key))
    return flat
