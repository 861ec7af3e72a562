"""What a run needs to know: the checked config and the facts that Hydra knows of the command."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig


@dataclass(frozen=True)
class Job:
    """One job of a sweep.

    Args:
        overrides: what was asked of this job, without the options that say where results go.
        parallel: other jobs may run at the same time.
        pruner: config of the pruner if the sweep is a search and this job one of its trials.
    """

    sweep_dir: Path
    number: int
    overrides: list[str]
    parallel: bool
    pruner: Any = None


@dataclass(frozen=True)
class Prepared:
    """A checked run; the only place in which Hydra's own state is read.

    Args:
        cfg: resolved and read-only.
        choices: option by config group, for example {"model": "bert"}.
        tags: what the tracked run is tagged with from its start: choices, identity, command.
        result_file: where the result is written as JSON; a job of a sweep has its number in it.
        job: None for a run outside a sweep.
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
