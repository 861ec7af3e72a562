"""Compose configs as the command line does, for tests."""

from __future__ import annotations

import copy
import functools
from collections.abc import Sequence
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from kinopoisk_ft.config.groups import get_conf_dir


def compose_config(overrides: Sequence[str] = ()) -> DictConfig:
    """Return the composed job config; `${hydra:…}` can be resolved."""
    whole, job = _composed(tuple(overrides))
    HydraConfig.instance().set_config(whole)
    return copy.deepcopy(job)


@functools.cache
def _composed(overrides: tuple[str, ...]) -> tuple[DictConfig, DictConfig]:
    """Return the config with and without Hydra's part, cached because many tests share configs."""
    with initialize_config_dir(str(get_conf_dir()), version_base="1.3", job_name="test"):
        whole = compose("train", overrides=list(overrides), return_hydra_config=True)
    OmegaConf.set_readonly(whole.hydra, False)
    whole.hydra.job.num = 0
    whole.hydra.runtime.output_dir = "unused"
    job = copy.deepcopy(whole)
    OmegaConf.set_struct(job, False)
    job.pop("hydra")
    OmegaConf.set_struct(job, True)
    return whole, job


def plain(cfg: DictConfig) -> dict[str, Any]:
    """Return the resolved config as plain dicts."""
    found: Any = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    return found
