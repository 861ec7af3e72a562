"""Which `_target_`s a config may name: this project's, the user's own, and those that they trust.

A config is data, and data may come from elsewhere: a folder of `--config-dir`, an experiment sent
by a colleague. A `_target_` in it would run any function of any package.
"""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.utils import get_object

TRUST = "KINOPOISK_FT_TARGETS"
OWN = ("kinopoisk_ft", "torch.optim")
# What Hydra's own part of a config names: launchers, sweepers, callbacks, and how to search.
HYDRA = (
    "hydra._internal.core_plugins", "hydra_plugins", "hydra.experimental", "optuna.samplers",
    "optuna.pruners",
)  # fmt: skip
INSTALLED = {"site-packages", "dist-packages"}

_held: tuple[str, ...] | None = None  # what was trusted when the command line began


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


def is_trusted(name: Any) -> bool:
    """Return whether a name is of what the user trusts."""
    return isinstance(name, str) and _within(name, trusted_packages())


def trusted_packages() -> tuple[str, ...]:
    """Return the packages and modules that the user named in the environment, by commas."""
    return _read_trust() if _held is None else _held


@contextmanager
def trust_held() -> Iterator[None]:
    """Let the environment count as it is now: what a config changes in it adds to no trust."""
    global _held
    before, _held = _held, _read_trust()
    try:
        yield
    finally:
        _held = before


def _read_trust() -> tuple[str, ...]:
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
