"""Decide which `_target_`s of a composed config may be called.

A `_target_` can name any function of any package, and a config may come from someone else.
Therefore only code of this project, the user's own code and packages that the user trusts may be
called. Files in a folder of `--config-dir` are trusted like the user's own code, because Hydra
instantiates their `hydra` node (launchers, callbacks, logging) before this check.
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
}

# Packages that the user trusted when the command line started; None outside `freeze_trust`.
_frozen: tuple[str, ...] | None = None


def rename_moved_targets(node: Any) -> Any:
    """Return a copy of a plain config in which current names replace outdated `_target_` names."""
    if isinstance(node, dict):
        return {
            key: MOVED.get(value, value)
            if key == "_target_" and isinstance(value, str)
            else rename_moved_targets(value)
            for key, value in node.items()
        }
    return [rename_moved_targets(value) for value in node] if isinstance(node, list) else node


def check_targets(node: Any, path: str = "") -> list[str]:
    """Return a message for each `_target_`, at any depth, that may not be called."""
    return [
        f"{where}: {reason}"
        for where, target in _find_targets(node, path)
        if (reason := check_target(target))
    ]


def check_target(target: Any) -> str | None:
    """Return the reason why a `_target_` may not be called; None if it may be called.

    The decision depends on where the object is defined and not on its name, because the modules of
    this project also contain imported names. The standard library is refused, because it can start
    any program. Code outside all installed packages counts as the user's own.
    """
    if not isinstance(target, str):
        return f"a `_target_` must be the name of a class or function, not {target!r}"
    trusted = (*OWN_PACKAGES, *get_trusted_packages())
    top = target.partition(".")[0]
    refusal = (
        f"'{target}' is neither this project's nor your own code; if you trust the author of this "
        f"config, set {TRUST_VARIABLE}={top} in the environment"
    )
    if top in sys.stdlib_module_names and not _is_within(target, trusted):
        return refusal
    try:
        value = get_object(target)
    except Exception as error:
        return f"cannot import '{target}': {error}"
    if not (inspect.isclass(value) or inspect.isroutine(value)):
        return f"'{target}' is neither a class nor a function"
    home = f"{value.__module__}.{value.__qualname__}"
    allowed = _is_within(home, trusted) or _is_user_code(value) or _is_adapter_or_optimizer(value)
    return None if allowed else refusal


def _is_user_code(value: Any) -> bool:
    """Return whether an object is defined outside the standard library and installed packages."""
    file = getattr(sys.modules.get(value.__module__), "__file__", None)
    if file is None or value.__module__.partition(".")[0] in sys.stdlib_module_names:
        return False
    return not INSTALL_FOLDERS & set(Path(file).resolve().parts)


def _is_adapter_or_optimizer(value: Any) -> bool:
    """Return whether an object is a subclass of PeftConfig, Optimizer or LRScheduler."""
    # Creating an instance of these classes has no side effects, so every package may define them.
    if not inspect.isclass(value):
        return False
    from peft import PeftConfig
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler

    return issubclass(value, PeftConfig | Optimizer | LRScheduler)


def get_trusted_packages() -> tuple[str, ...]:
    """Return the packages and modules that the user listed in KINOPOISK_FT_TARGETS."""
    return _read_trust() if _frozen is None else _frozen


@contextmanager
def freeze_trust() -> Iterator[None]:
    """Read the trusted packages once, so that a config cannot add more by setting the variable."""
    global _frozen
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
