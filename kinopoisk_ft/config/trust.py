"""Decide which objects a config may call with `_target_`.

A `_target_` can name any function of any package, and a config may come from someone else.
Therefore, a `_target_` may name only:

- code of this project or of `torch.optim`
- the user's own code
- code of packages that the environment variable KINOPOISK_FT_TARGETS lists
- adapter configs, optimizers and learning rate schedulers of any package

The check comes too late for config files in the folder that the option `--config-dir` names: Hydra
instantiates the `hydra` node of these files first. Therefore, use `--config-dir` only with folders
that you trust.
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

TRUST_VARIABLE = "KINOPOISK_FT_TARGETS"
OWN_PACKAGES = ("kinopoisk_ft", "torch.optim")
INSTALL_FOLDERS = {"site-packages", "dist-packages"}
# Names that earlier versions used; users' own yaml files and saved configs may still contain them.
MOVED = {
    "kinopoisk_ft.run.finetune": "kinopoisk_ft.tasks.finetune.finetune",
    "kinopoisk_ft.pretraining.pretrain": "kinopoisk_ft.tasks.pretrain.pretrain",
    "kinopoisk_ft.models.baseline.Tfidf": "kinopoisk_ft.models.tfidf.Tfidf",
    "kinopoisk_ft.tracking.base.NoTracker": "kinopoisk_ft.tracking.base.Tracker",
}

# Packages that the user trusted when the command line started; None outside `freeze_trust`.
_frozen: tuple[str, ...] | None = None


def rename_moved_targets(node: Any) -> Any:
    """Return a copy of a config in which current `_target_` names replace outdated names."""
    if isinstance(node, dict):
        return {
            key: MOVED.get(value, value)
            if key == "_target_" and isinstance(value, str)
            else rename_moved_targets(value)
            for key, value in node.items()
        }
    return [rename_moved_targets(value) for value in node] if isinstance(node, list) else node


def check_targets(node: Any, path: str = "") -> list[str]:
    """Return a message for each forbidden `_target_` in a config."""
    return [
        f"{where}: {reason}"
        for where, target in _find_targets(node, path)
        if (reason := check_target(target))
    ]


def check_target(target: Any) -> str | None:
    """Return the reason why a `_target_` is forbidden; None if the `_target_` is allowed.

    The decision depends on the module that defines the object. For example,
    "kinopoisk_ft.files.os.remove" is forbidden, because the standard library defines this function.
    The user's own code is allowed. This is all code outside the standard library and the folders of
    installed packages.
    """
    if not isinstance(target, str):
        return f"a `_target_` must be the name of a class or function, not {target!r}"
    trusted = (*OWN_PACKAGES, *get_trusted_packages())
    top = target.partition(".")[0]
    refusal = (
        f"'{target}' is neither this project's nor your own code; if you trust the author of this "
        f"config, set {TRUST_VARIABLE}={top} in the environment"
    )
    # The standard library can start any program.
    if top in sys.stdlib_module_names and not _is_within(target, trusted):
        return refusal
    try:
        value = get_object(target)
    # An import runs the code of a module, which may raise any exception.
    except Exception as error:
        return f"cannot import '{target}': {error}"
    # Other objects, such as instances of functools.partial, have no `__qualname__`.
    if not (inspect.isclass(value) or inspect.isroutine(value)):
        return f"'{target}' is neither a class nor a function"
    home = f"{value.__module__}.{value.__qualname__}"
    allowed = _is_within(home, trusted) or _is_user_code(value) or _is_adapter_or_optimizer(value)
    return None if allowed else refusal


def _is_user_code(value: Any) -> bool:
    file = getattr(sys.modules.get(value.__module__), "__file__", None)
    # Modules that are built into the interpreter have no file.
    if file is None or value.__module__.partition(".")[0] in sys.stdlib_module_names:
        return False
    # Links are resolved, so that a link to an installed package is not taken for the user's code.
    return not INSTALL_FOLDERS & set(Path(file).resolve().parts)


def _is_adapter_or_optimizer(value: Any) -> bool:
    # Creating an adapter config or an optimizer has no side effects, so any package may define one.
    if not inspect.isclass(value):
        return False
    # PEFT takes seconds to import, and few configs need this check.
    from peft import PeftConfig
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler

    return issubclass(value, PeftConfig | Optimizer | LRScheduler)


def get_trusted_packages() -> tuple[str, ...]:
    """Return the packages and modules listed in the environment variable KINOPOISK_FT_TARGETS."""
    return _read_trust() if _frozen is None else _frozen


@contextmanager
def freeze_trust() -> Iterator[None]:
    """Read KINOPOISK_FT_TARGETS now, and ignore later changes inside this context.

    Otherwise, a config could set this variable itself, and thereby allow any `_target_`.
    """
    global _frozen
    # Hydra sets the variables in hydra.job.env_set just before it starts a job.
    before, _frozen = _frozen, _read_trust()
    try:
        yield
    finally:
        _frozen = before


def _read_trust() -> tuple[str, ...]:
    names = (name.strip() for name in os.environ.get(TRUST_VARIABLE, "").split(","))
    return tuple(name for name in names if name)


def _is_within(name: str, packages: tuple[str, ...]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def _find_targets(node: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(node, dict):
        for key, value in node.items():
            where = f"{path}.{key}" if path else str(key)
            if key == "_target_":
                yield where, value
            else:
                yield from _find_targets(value, where)
    elif isinstance(node, list):
        for number, value in enumerate(node):
            yield from _find_targets(value, f"{path}[{number}]")
