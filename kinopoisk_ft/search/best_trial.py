"""Write the best config of a search as an experiment file."""

from __future__ import annotations

import re
import shlex
from functools import partial
from pathlib import Path
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from kinopoisk_ft.config.command import (
    KEYS_WITHOUT_EFFECT,
    build_main_flags,
    format_override,
    get_top_key,
)
from kinopoisk_ft.config.prepared import flatten, get_overrides
from kinopoisk_ft.files import write_atomically

# Path of the experiment file inside the folder of the search.
# Hydra finds this file as `experiment=best` if the folder of the search is on its search path.
BEST = Path("experiment", "best.yaml")
# Prefixes of config groups that an experiment file cannot set, or that say where results go.
NOT_CHOSEN = ("hydra/", "experiment", "sweep", "tracking")


def write_best(
    loader: ConfigLoader, trial: DictConfig, folder: Path, comment: str, tuning_trials: int
) -> None:
    """Write the config of a trial as an experiment file.

    The file selects the config groups of the trial, and sets only values that differ from the
    defaults.

    Args:
        trial: the composed config of the trial, including the `hydra` node.
        comment: a line of text that describes the file.
        tuning_trials: number of trials of the search. Runs that use the file record this number for
            the report.
    """
    known = trial.hydra.runtime.choices
    choices = {
        group: option
        for group, option in known.items()
        if option is not None and not group.startswith(NOT_CHOSEN)
    }
    # An option may come from a folder on the user's search path.
    overrides = [o for o in trial.hydra.overrides.hydra if o.startswith("hydra.searchpath=")]
    # The new file replaces an experiment file that the user's own main config selects.
    overrides += ["~experiment"] if known.get("experiment") else []
    compose = partial(loader.load_configuration, trial.hydra.job.config_name, run_mode=RunMode.RUN)
    # A group that the main config does not choose, such as the user's own, is added with a +. The
    # second config is composed because an option can choose groups, too.
    groups = compose(overrides).hydra.runtime.choices
    found = [f"{group}={option}" for group, option in choices.items() if group in groups]
    groups = compose([*overrides, *found]).hydra.runtime.choices
    added = choices.keys() - groups.keys()
    overrides += [f"{'+' * (group in added)}{group}={choices[group]}" for group in choices]
    plain = compose(overrides)
    before, after = (_flatten_settings(cfg) for cfg in (plain, trial))
    content = DictConfig({"tuning_trials": tuning_trials})
    for key, value in after.items():
        if key not in before or before[key] != value:
            OmegaConf.update(content, key, value, force_add=True)
    # If the main config has chosen an option of a group before, Hydra requires `override`.
    chosen = [
        {f"/{group}" if group in added else f"override /{group}": option}
        for group, option in choices.items()
    ]
    defaults = OmegaConf.to_yaml(DictConfig({"defaults": chosen}))
    file = folder / BEST
    # With `_global_`, the keys belong to the root of the config and not to the node `experiment`.
    text = f"# @package _global_\n# {comment}\n{defaults}{OmegaConf.to_yaml(content)}"
    write_atomically(file, text)


def format_command(trial: DictConfig, folder: Path) -> str:
    """Return the command that trains a model with best.yaml.

    The command repeats which main config and which folders of configs the search used.
    """
    sources, main = trial.hydra.runtime.config_sources, build_main_flags(trial.hydra)
    folders = [s.path for s in sources if s.provider == "command-line"]
    searched = [
        f"{s.schema}://{s.path}" for s in sources if s.provider.startswith("hydra.searchpath")
    ]
    # Hydra accepts only one --config-dir, so best.yaml must be on the search path.
    if folders:
        searched.insert(0, f"file://{folder.absolute()}")
    args = [*main, "--config-dir", *(folders or [str(folder)]), "experiment=best"]
    if searched:
        args.append(format_override("hydra.searchpath", searched))
    # Repeat deletions of keys, because an experiment file can only change values.
    overrides = get_overrides(trial.hydra)
    args += [o for o in overrides if o.startswith("~")]
    if main:
        # The user's own main config replaces values and options of best.yaml, and may be a sweep.
        args += ["hydra.mode=RUN", *filter(_changes_main_config, overrides)]
    return shlex.join(["python", "-m", "kinopoisk_ft", *args])


def _changes_main_config(override: str) -> bool:
    # An override with a single + adds a key that the main config does not have.
    if re.match(r"~|\+(?!\+)", override):
        return False
    key = get_top_key(override)
    return key not in KEYS_WITHOUT_EFFECT and not key.startswith(NOT_CHOSEN)


def _flatten_settings(cfg: DictConfig) -> dict[str, Any]:
    plain: Any = OmegaConf.to_container(cfg)
    return flatten({k: v for k, v in plain.items() if k not in {"hydra", *KEYS_WITHOUT_EFFECT}})
