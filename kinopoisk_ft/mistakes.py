"""What a mistake in an override was, in words that name what was meant."""

from __future__ import annotations

import re
from typing import Any

from kinopoisk_ft.conf_path import conf_dir, group_options
from kinopoisk_ft.errors import nearest

# Launchers that are there when their extra is installed.
EXTRAS = {"joblib": "parallel", "submitit_slurm": "slurm", "submitit_local": "slurm",
          "ray_base": "ray"}  # fmt: skip


def explain(error: Exception, args: list[str]) -> str:
    """Turn Hydra's message on an override into one that names the nearest valid name."""
    from hydra.errors import MissingConfigException

    text = str(error)
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, option = error.missing_cfg_file.rpartition("/")
        if group == "hydra/launcher" and option in EXTRAS:
            return f"parallel jobs need an extra: pip install 'kinopoisk-ft[{EXTRAS[option]}]'"
        return f"there is no '{option}' in group '{group}': {nearest(option, error.options or [])}"
    missing = re.match(r"Could not override '([^']+)'", text)
    if missing:
        key = missing.group(1)
        return f"there is no option '{key}': {nearest(key, _known_keys(args, key))}"
    return text.strip()


def _known_keys(args: list[str], bad: str) -> list[str]:
    """Return every key and group of the config as composed without the overrides of `bad`."""
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    choices = [a for a in args if re.match(r"^[\w/]+=[\w/]+$", a) and not a.startswith(bad)]
    groups = group_options(conf_dir())
    chosen = [
        a
        for a in choices
        if a.split("=")[0] in groups and a.split("=")[1] in groups[a.split("=")[0]]
    ]
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        config = compose("train", overrides=chosen)
    return sorted(_leaves(OmegaConf.to_container(config))) + sorted(groups)


def _leaves(node: Any, prefix: str = "") -> list[str]:
    if not isinstance(node, dict):
        return [prefix]
    keys = [f"{prefix}.{k}" if prefix else str(k) for k in node if k != "_target_"]
    return keys + [
        leaf for k, v in node.items() for leaf in _leaves(v, f"{prefix}.{k}" if prefix else str(k))
    ]


def in_composing(error: TypeError) -> bool:
    """Return whether Hydra itself tripped, over a choice such as `adapter=[1]`."""
    last = error.__traceback__
    while last and last.tb_next:
        last = last.tb_next
    return last is not None and last.tb_frame.f_globals["__name__"].startswith("hydra._internal.")
