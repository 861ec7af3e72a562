"""Which `_target_`s a config may name: those of this project, and those that the user trusts.

A config is data, and data may come from elsewhere: a folder of `--config-dir`, an experiment sent
by a colleague. A `_target_` in it would run any function of any package.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from hydra.utils import get_object
from omegaconf import OmegaConf

from kinopoisk_ft.errors import UserError

TRUST = "KINOPOISK_FT_TARGETS"
OWN = ("kinopoisk_ft", "torch.optim")
HYDRA = ("hydra._internal.core_plugins", "hydra_plugins", "hydra.experimental")
MAKERS = ("oc.create", "oc.decode")  # resolvers that turn text into nodes
CONFIGS = "peft"  # of this package the configs alone: its models would load what they are told


def foreign_targets(node: Any, path: str = "") -> list[str]:
    """Return a line for each `_target_` at any depth that may not be run; imports only trusted."""
    return [
        f"{where}: {reason}"
        for where, target in _targets(node, path)
        if (reason := refused(target))
    ]


def refused(target: Any) -> str | None:
    """Return why a `_target_` may not be run, None if it may.

    What a name leads to counts, not the name: a module of ours has the modules it imports too.
    """
    if not isinstance(target, str):
        return f"a `_target_` is the name of a class or function, not {target!r}"
    trusted = (*OWN, *trusted_packages())
    told = (
        f"'{target}' is not a part of this project; if you trust whoever wrote this config, "
        f"set {TRUST}={target.partition('.')[0]} in the environment"
    )
    if not _within(target, (*trusted, CONFIGS)):
        return told
    try:
        found = get_object(target)
    except Exception as error:
        return f"cannot import '{target}': {error}"
    if not (inspect.isclass(found) or inspect.isroutine(found)):
        return f"'{target}' is neither a class nor a function"
    home = f"{found.__module__}.{found.__qualname__}"
    if _within(home, trusted) or (_within(home, (CONFIGS,)) and _is_config(found)):
        return None
    return told


def check_folders(folders: Iterable[Path]) -> None:
    """Raise UserError for a `_target_` in a folder of configs that may not be run.

    Hydra builds what its own part of a config names before a job sees any of it, so the files are
    looked at before Hydra is.
    """
    for folder in folders:
        for file in sorted(folder.rglob("*.yaml")):
            for line in _foreign_lines(file):
                raise UserError(line, where=str(file), fix="leave it out, or trust its package")


def _foreign_lines(file: Path) -> Iterator[str]:
    try:
        text = file.read_text(encoding="utf-8")
        node = OmegaConf.to_container(OmegaConf.load(file), resolve=False)
    except Exception:  # of many kinds; Hydra cannot read it either, and says so if it is chosen
        return
    yield from (f"a config may not make nodes out of text: {m}" for m in MAKERS if m in text)
    for where, target in _targets(node, ""):
        told = refused(target)
        if told and not (isinstance(target, str) and _within(target, HYDRA)):
            yield f"{where}: {told}"


def trusted_packages() -> tuple[str, ...]:
    """Return the packages and modules that the user named in the environment, by commas."""
    names = (name.strip() for name in os.environ.get(TRUST, "").split(","))
    return tuple(name for name in names if name)


def _within(name: str, packages: tuple[str, ...]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def _is_config(found: Any) -> bool:
    from peft import PeftConfig

    return inspect.isclass(found) and issubclass(found, PeftConfig)


def _targets(node: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(node, dict):
        for key, value in node.items():
            where = f"{path}.{key}" if path else str(key)
            if key == "_target_":
                yield where, value
            else:
                yield from _targets(value, where)
    elif isinstance(node, list):
        for number, value in enumerate(node):
            yield from _targets(value, f"{path}[{number}]")
