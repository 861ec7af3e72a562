"""The command line that repeats a run by itself: the same recipe, and the same identity."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from kinopoisk_ft.config.groups import conf_dir
from kinopoisk_ft.config.prepared import flatten
from kinopoisk_ft.training.distributed import torchrun

# Keys that change no result: where it goes, and how it is kept from loss.
NO_INFLUENCE = {"output_dir", "result_json", "rerun", "resume", "tracking"}
NAME = "train"  # of the config that has all groups


def command(hydra: Any, values: dict[str, Any]) -> str:
    """Return the command that repeats a run, for the folder in which the run was started.

    A job of a sweep keeps the sweep's config file, which may say more, but no longer sweeps.

    Args:
        hydra: Hydra's own part of the config.
        values: by key, the seed and all values from the environment, as the run had them.
    """
    fixed = {*NO_INFLUENCE, *values}
    overrides = [o for o in hydra.overrides.task if not {top(o), _key(o)} & fixed]
    overrides += [as_override(key, value) for key, value in values.items()]
    several = torchrun.world_size() > 1
    start = ["torchrun", "--nproc-per-node", str(torchrun.world_size())] if several else ["python"]
    return shlex.join([*start, "-m", "kinopoisk_ft", *_configs(hydra), *overrides])


def from_environment(cfg: DictConfig, plain: dict[str, Any]) -> dict[str, Any]:
    """Return by key what a config takes from environment variables, as `plain` has it resolved."""
    texts, values = flatten(OmegaConf.to_container(cfg)), flatten(plain)
    return {
        key: values[key]
        for key, text in texts.items()
        if "${oc.env:" in str(text) and key in values and top(key) not in NO_INFLUENCE
    }


def top(override: str) -> str:
    """Return the first part of an override's key."""
    return _key(override).partition(".")[0]


def as_override(key: str, value: Any) -> str:
    """Return an override that Hydra reads as this very value."""
    plain = f"{key}={value}"
    try:
        read = OverridesParser.create().parse_override(plain).value()
    except HydraException:
        read = None
    if isinstance(value, str) and read != value:
        # Hydra halves backslashes before a quote, and no others.
        return f'{key}="' + re.sub(r'(\\*)("|$)', _escaped, value) + '"'
    return plain if isinstance(value, str) else f"{key}={json.dumps(value, ensure_ascii=False)}"


def _escaped(found: re.Match[str]) -> str:
    return 2 * found[1] + found[2].replace('"', '\\"')


def _key(override: str) -> str:
    return override.lstrip("+~").partition("=")[0]


def _configs(hydra: Any) -> list[str]:
    """Return what adds a user's own configs, and what makes of a sweep's job a run."""
    places = {source.provider: source.path for source in hydra.runtime.config_sources}
    found = []
    if places["main"] != str(conf_dir()):
        found += ["--config-path", places["main"]]
    if hydra.job.config_name != NAME:
        found += ["--config-name", hydra.job.config_name]
    if "command-line" in places:
        found += ["--config-dir", _shown(places["command-line"], hydra.runtime.cwd)]
    found += [o for o in hydra.overrides.hydra if _key(o) == "hydra.searchpath"]
    return found + (["hydra.mode=RUN"] if hydra.mode == RunMode.MULTIRUN else [])


def _shown(path: str, home: str) -> str:
    """Return a path as it may be given in the folder `home`."""
    return str(Path(path).relative_to(home)) if Path(path).is_relative_to(home) else path
