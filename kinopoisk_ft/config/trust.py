"""Check which `_target_`s a composed config may name: ours, the user's own and trusted ones.

A `_target_` can call any function of any package, and a config may come from a colleague or from a
saved run. Files in a folder of `--config-dir` count as the user's own code: Hydra reads its own
part of them (launchers, callbacks, logging) before this check.
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
INSTALLED = {"site-packages", "dist-packages"}
# Public names of earlier versions, for a user's own yaml and for saved configs.
MOVED = {
    "kinopoisk_ft.run.finetune": "kinopoisk_ft.tasks.finetune.finetune",
    "kinopoisk_ft.pretraining.pretrain": "kinopoisk_ft.tasks.pretrain.pretrain",
    "kinopoisk_ft.models.baseline.Tfidf": "kinopoisk_ft.models.tfidf.Tfidf",
}

# Packages that were trusted when the command line started.
_held: tuple[str, ...] | None = None


def with_current_targets(node: Any) -> Any:
    """Return a copy of plain config values in which each moved `_target_` has its current name."""
    if isinstance(node, dict):
        return {
            key: MOVED.get(value, value)
            if key == "_target_" and isinstance(value, str)
            else with_current_targets(value)
            for key, value in node.items()
        }
    return [with_current_targets(value) for value in node] if isinstance(node, list) else node


def foreign_targets(node: Any, path: str = "") -> list[str]:
    """Return a line for each `_target_` at any depth that may not be run."""
    return [
        f"{where}: {reason}"
        for where, target in _targets(node, path)
        if (reason := refused(target))
    ]


def refused(target: Any) -> str | None:
    """Return why a `_target_` may not be called; None if it may.

    The object that a name resolves to counts, not the name: our modules also hold what they import.
    Nothing of Python's standard library may be called, because it can run anything. Code outside
    all installed packages is the user's own.
    """
    if not isinstance(target, str):
        return f"a `_target_` is the name of a class or function, not {target!r}"
    trusted = (*OWN, *trusted_packages())
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


def trusted_packages() -> tuple[str, ...]:
    """Return the packages and modules that the user named in the environment, by commas."""
    return _read_trust() if _held is None else _held


@contextmanager
def trust_held() -> Iterator[None]:
    """Read the trusted packages once, so that a config that sets the variable gains no trust."""
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
