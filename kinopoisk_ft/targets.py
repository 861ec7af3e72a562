"""Which `_target_`s a config may name: this project's, the user's own, and those that they trust.

A config is data, and data may come from elsewhere: a folder of `--config-dir`, an experiment sent
by a colleague. A `_target_` in it would run any function of any package.
"""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from hydra.utils import get_object
from omegaconf import OmegaConf

from kinopoisk_ft.errors import UserError

TRUST = "KINOPOISK_FT_TARGETS"
OWN = ("kinopoisk_ft", "torch.optim")
# What Hydra's own part of a config names: launchers, sweepers, callbacks, and how to search.
HYDRA = (
    "hydra._internal.core_plugins", "hydra_plugins", "hydra.experimental", "optuna.samplers",
    "optuna.pruners",
)  # fmt: skip
MAKERS = ("oc.create", "oc.decode")  # resolvers that turn text into nodes
INSTALLED = {"site-packages", "dist-packages"}


def foreign_targets(node: Any, path: str = "") -> list[str]:
    """Return a line for each `_target_` at any depth that may not be run."""
    return [
        f"{where}: {reason}"
        for where, target in _targets(node, path)
        if (reason := refused(target))
    ]


def refused(target: Any, *also: str) -> str | None:
    """Return why a `_target_` may not be run, None if it may, as what is in `also` may be, too.

    What a name leads to counts, not the name: a module of ours has the modules it imports too.
    Python's own library runs anything, so none of it may be named; code outside of all installed
    packages is the user's.
    """
    if not isinstance(target, str):
        return f"a `_target_` is the name of a class or function, not {target!r}"
    trusted = (*OWN, *also, *trusted_packages())
    top = target.partition(".")[0]
    told = (
        f"'{target}' is neither this project's nor your own code; if you trust whoever wrote this "
        f"config, set {TRUST}={top} in the environment"
    )
    if top in sys.stdlib_module_names and not _within(target, trusted):
        return told
    try:
        found = get_object(target)
    except Exception as error:
        return f"cannot import '{target}': {error}"
    if not (inspect.isclass(found) or inspect.isroutine(found)):
        return f"'{target}' is neither a class nor a function"
    home = f"{found.__module__}.{found.__qualname__}"
    allowed = _within(home, trusted) or _is_users(found) or _is_known_kind(found)
    return None if allowed else told


def _is_users(found: Any) -> bool:
    """Whether a class or function comes from a file outside of Python's and all installed ones."""
    file = getattr(sys.modules.get(found.__module__), "__file__", None)
    if file is None or found.__module__.partition(".")[0] in sys.stdlib_module_names:
        return False
    return not INSTALLED & set(Path(file).resolve().parts)


def _is_known_kind(found: Any) -> bool:
    """Whether it is a class that can do no more than adapt a matrix or update a weight."""
    if not inspect.isclass(found):
        return False
    from peft import PeftConfig
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler

    return issubclass(found, PeftConfig | Optimizer | LRScheduler)


def check_folders(folders: Iterable[Path]) -> None:
    """Raise UserError for a `_target_` in a folder of configs that may not be run.

    Hydra builds what its own part of a config names before a job sees any of it, so the files are
    looked at before Hydra is.
    """
    for folder in folders:
        for file in sorted(folder.rglob("*.yaml")):
            for line in _foreign_lines(file, folder.resolve()):
                raise UserError(line, where=str(file), fix="leave it out, or trust its package")


def _foreign_lines(file: Path, folder: Path) -> Iterator[str]:
    try:
        text = file.read_text(encoding="utf-8")
        node = OmegaConf.to_container(OmegaConf.load(file), resolve=False)
    except Exception:  # of many kinds; Hydra cannot read it either, and says so if it is chosen
        return
    yield from (f"a config may not make nodes out of text: {m}" for m in MAKERS if m in text)
    for where, target in _targets(node, ""):
        if told := _brought(target, folder) or refused(target, *HYDRA):
            yield f"{where}: {told}"


def _brought(target: Any, folder: Path) -> str | None:
    """Return why code that lies among the configs may not be run, None if there is none.

    A folder below the working directory is a package to Python. One that the user put on Python's
    path is another matter.
    """
    top = str(target).partition(".")[0]
    for entry in (Path(entry).resolve() for entry in sys.path):
        inside = entry.is_relative_to(folder)
        if not inside and (entry / top).resolve().is_relative_to(folder):
            return f"'{target}' is code that came with the configs: put it elsewhere to run it"
    return None


def trusted_packages() -> tuple[str, ...]:
    """Return the packages and modules that the user named in the environment, by commas."""
    names = (name.strip() for name in os.environ.get(TRUST, "").split(","))
    return tuple(name for name in names if name)


def _within(name: str, packages: tuple[str, ...]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


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
