"""Write the best config of a search as an experiment file, and format the command that runs it."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from kinopoisk_ft.config.command import KEYS_WITHOUT_EFFECT
from kinopoisk_ft.config.prepared import flatten
from kinopoisk_ft.files import write_atomically

# Path inside the folder of the search.
BEST = Path("experiment", "best.yaml")
# Choices that an experiment file cannot make, or that decide where results go.
NOT_CHOSEN = ("hydra/", "experiment", "sweep", "tracking")


def write_best(loader: ConfigLoader, trial: DictConfig, folder: Path, comment: str) -> None:
    """Write a trial's choices, and the values that differ from the files of these choices.

    Args:
        trial: the trial's composed config, `hydra` included.
        comment: first line of the file.
    """
    choices = {
        group: option
        for group, option in trial.hydra.runtime.choices.items()
        if option is not None and not group.startswith(NOT_CHOSEN)
    }
    plain = loader.load_configuration(
        trial.hydra.job.config_name, [f"{g}={o}" for g, o in choices.items()], RunMode.RUN
    )
    before, after = (_flatten_settings(cfg) for cfg in (plain, trial))
    content = DictConfig({})
    for key, value in after.items():
        if key not in before or before[key] != value:
            OmegaConf.update(content, key, value, force_add=True)
    chosen = [{f"override /{group}": option} for group, option in choices.items()]
    defaults = OmegaConf.to_yaml(DictConfig({"defaults": chosen}))
    file = folder / BEST
    text = f"# @package _global_\n# {comment}\n{defaults}{OmegaConf.to_yaml(content)}"
    write_atomically(file, text)


def format_command(trial: DictConfig, folder: Path) -> str:
    """Return the command that trains with best.yaml and with the --config-dir of the search."""
    folders = [s.path for s in trial.hydra.runtime.config_sources if s.provider == "command-line"]
    args = ["--config-dir", *(folders or [str(folder)]), "experiment=best"]
    if folders:
        args.append(f"hydra.searchpath=[file://{folder.absolute()}]")
    # An experiment file can change a value, but it cannot delete a key.
    args += [o for o in trial.hydra.overrides.task if o.startswith("~")]
    return shlex.join(["python", "-m", "kinopoisk_ft", *args])


def _flatten_settings(cfg: DictConfig) -> dict[str, Any]:
    plain: Any = OmegaConf.to_container(cfg)
    return flatten({k: v for k, v in plain.items() if k not in {"hydra", *KEYS_WITHOUT_EFFECT}})
