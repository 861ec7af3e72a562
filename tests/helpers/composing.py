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
    """Return the composed job config with Hydra's own part set up for `${hydra:…}`."""
    hydra, job = _composed(tuple(overrides))
    HydraConfig.instance().set_config(hydra)
    return copy.deepcopy(job)


@functools.cache
def _composed(overrides: tuple[str, ...]) -> tuple[DictConfig, DictConfig]:
    """Return Hydra's own part and the job's: hundreds of tests ask for the same few configs."""
    with initialize_config_dir(str(get_conf_dir()), version_base="1.3", job_name="test"):
        cfg = compose("train", overrides=list(overrides), return_hydra_config=True)
    OmegaConf.set_readonly(cfg.hydra, False)
    cfg.hydra.job.num = 0
    cfg.hydra.runtime.output_dir = "unused"
    hydra = OmegaConf.masked_copy(cfg, "hydra")
    OmegaConf.set_struct(cfg, False)
    cfg.pop("hydra")
    OmegaConf.set_struct(cfg, True)
    return hydra, cfg


def plain(cfg: DictConfig) -> dict[str, Any]:
    """Return the resolved config as plain dicts."""
    found: Any = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    return found
