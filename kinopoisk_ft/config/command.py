"""Build the shell command that repeats a run with the same config and seed."""

from __future__ import annotations

import json
import math
import re
import shlex
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from kinopoisk_ft.config.groups import get_conf_dir
from kinopoisk_ft.config.prepared import flatten, get_overrides
from kinopoisk_ft.training.distributed import torchrun

# Keys that decide where and whether a run is written or resumed, but do not change its result.
KEYS_WITHOUT_EFFECT = {
    "dry_run", "output_dir", "rerun", "result_json", "resume", "tracking", "tuning_trials",
}  # fmt: skip
# The same for options of the group trainer.
TRAINER_KEYS_WITHOUT_EFFECT = ("trainer.checkpoint_every", "trainer.process_timeout")
# conf/train.yaml, the config file that composes all groups.
MAIN_CONFIG = "train"


def build_command(hydra: Any, values: dict[str, Any]) -> str:
    """Return the shell command that repeats a run in the same working directory.

    For a job of a sweep, the command repeats only this job.

    Args:
        hydra: node `hydra` of the composed config.
        values: {dotted key: value} for the seed and for values from environment variables. The
            command sets these keys, so that the repeated run does not draw another seed or read a
            changed variable.
    """
    # An override can set a group (tracking=none), a key of this group (tracking.uri=…), or one of
    # the dotted keys in `values`.
    replaced = {*KEYS_WITHOUT_EFFECT, *values}
    overrides = [o for o in get_overrides(hydra) if not {get_top_key(o), _get_key(o)} & replaced]
    overrides += [format_override(key, value) for key, value in values.items()]
    processes = torchrun.world_size()
    start = ["torchrun", "--nproc-per-node", str(processes)] if processes > 1 else ["python"]
    return shlex.join([*start, "-m", "kinopoisk_ft", *_build_config_flags(hydra), *overrides])


def keep_effective(config: dict[str, Any]) -> dict[str, Any]:
    """Return a config without the keys that do not change the result of a run."""
    kept = {key: value for key, value in config.items() if key not in KEYS_WITHOUT_EFFECT}
    trainer = {
        key: value
        for key, value in kept["trainer"].items()
        if f"trainer.{key}" not in TRAINER_KEYS_WITHOUT_EFFECT
    }
    return kept | {"trainer": trainer}


def read_environment_values(cfg: DictConfig, plain: dict[str, Any]) -> dict[str, Any]:
    """Return {dotted key: value} for the values that come from environment variables.

    Args:
        cfg: composed config with unresolved interpolations.
        plain: the same config with resolved interpolations.
    """
    texts, values = flatten(OmegaConf.to_container(cfg)), flatten(plain)
    return {
        key: values[key]
        for key, text in texts.items()
        if "${oc.env:" in str(text)
        and key in values
        and get_top_key(key) not in KEYS_WITHOUT_EFFECT
    }


def get_top_key(override: str) -> str:
    """Return the top-level key of an override, for example "trainer" for "trainer.lr=1"."""
    return _get_key(override).partition(".")[0]


def format_override(key: str, value: Any) -> str:
    """Return `key=value` in Hydra's override syntax, with quotes where necessary."""
    plain = f"{key}={value}"
    try:
        read = OverridesParser.create().parse_override(plain).value()
    except HydraException:
        read = None
    # Without quotes, Hydra would read "1" as a number, "null" as None, and "a,b" as two values.
    if isinstance(value, str) and read != value:
        # In a quoted value, Hydra replaces \\ by \ only before a quote.
        return f'{key}="' + re.sub(r'(\\*)("|$)', _escape_quote, value) + '"'
    # Hydra's grammar has inf and nan like Python. JSON would write Infinity and NaN.
    if isinstance(value, float) and not math.isfinite(value):
        return plain
    # JSON writes true, false, null, numbers and lists as Hydra's grammar expects them.
    return plain if isinstance(value, str) else f"{key}={json.dumps(value, ensure_ascii=False)}"


def build_main_flags(hydra: Any) -> list[str]:
    """Return the flags that select the user's own main config; [] for conf/train.yaml."""
    main = _find_folders(hydra)["main"]
    flags = [] if main == str(get_conf_dir()) else ["--config-path", main]
    if hydra.job.config_name != MAIN_CONFIG:
        flags += ["--config-name", hydra.job.config_name]
    return flags


def _find_folders(hydra: Any) -> dict[str, str]:
    # Hydra names the primary config folder "main" and the folder of --config-dir "command-line".
    return {source.provider: source.path for source in hydra.runtime.config_sources}


def _escape_quote(match: re.Match[str]) -> str:
    return 2 * match[1] + match[2].replace('"', '\\"')


def _get_key(override: str) -> str:
    # In Hydra, + adds a key, ++ adds or changes it, and ~ deletes it.
    return override.lstrip("+~").partition("=")[0]


def _build_config_flags(hydra: Any) -> list[str]:
    folders, flags = _find_folders(hydra), build_main_flags(hydra)
    if "command-line" in folders:
        path, home = Path(folders["command-line"]), hydra.runtime.cwd
        path = path.relative_to(home) if path.is_relative_to(home) else path
        flags += ["--config-dir", str(path)]
    # Of the overrides of Hydra's own keys, only this one decides which config files are found.
    flags += [o for o in hydra.overrides.hydra if _get_key(o) == "hydra.searchpath"]
    # The config of a sweep may set hydra.mode to MULTIRUN, but the command repeats only one job.
    return flags + (["hydra.mode=RUN"] if hydra.mode == RunMode.MULTIRUN else [])
