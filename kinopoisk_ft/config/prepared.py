"""A checked config with what a run needs to know of its command."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig


@dataclass(frozen=True)
class Prepared:
    """A checked, resolved, read-only config and the names of its group choices."""

    cfg: DictConfig
    choices: dict[str, str]
    overrides: list[str]
    from_environment: dict[str, Any]  # values that the config takes from there, by key
