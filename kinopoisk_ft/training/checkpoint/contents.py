"""Convert state dicts to the contents of a checkpoint and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from kinopoisk_ft.training.distributed.sharding import gather_tensor
from kinopoisk_ft.training.state import SCHEDULE

# A JSON object that has only this key is a placeholder for the tensor that its value names.
TENSOR = "tensor"


def split_tensors(tree: Any, tensors: dict[str, Tensor], path: str = "") -> Any:
    """Separate the tensors in a nested state dict from the other values.

    All ranks must call this function together, because sharded tensors are gathered on rank 0.

    Args:
        tensors: dict to which each tensor is added. The key is the tensor's path in the state dict.

    Returns:
        The other values as JSON values, with placeholders for the tensors. Tuples become lists, and
        keys become strings.
    """
    if isinstance(tree, Tensor):
        tensors[path] = gather_tensor(tree)
        return {TENSOR: path}
    # All ranks visit the keys in the same order, which collective operations require.
    if isinstance(tree, Mapping):
        inner = {str(key): (f"{path}/{key}".lstrip("/"), value) for key, value in tree.items()}
        return {key: split_tensors(value, tensors, at) for key, (at, value) in inner.items()}
    if isinstance(tree, list | tuple):
        return [split_tensors(value, tensors, f"{path}/{i}") for i, value in enumerate(tree)]
    return tree


def join_tensors(plain: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Undo `split_tensors`; placeholders of missing tensors remain."""
    if isinstance(plain, dict):
        if plain.keys() == {TENSOR} and plain[TENSOR] in tensors:
            return tensors[plain[TENSOR]]
        return {key: join_tensors(value, tensors) for key, value in plain.items()}
    if isinstance(plain, list):
        return [join_tensors(value, tensors) for value in plain]
    return plain


def validate_checkpoint(expected: Any, found: Any, path: str = "") -> str | None:
    """Return the first difference in keys, types or tensor shapes between two state dicts.

    This check detects a checkpoint that is undamaged, but from another version of the code.

    Args:
        expected: the state dict of a new run.
        found: the state dict read from a checkpoint. If an entry of `expected` is empty, such as
            the history of a new run, the entry in `found` may contain any numbers and tensors.

    Returns:
        The difference as text; None if there is none.
    """
    path = path.lstrip("/")
    if isinstance(expected, Tensor):
        now, then = _describe(expected), _describe(found)
        # In a new run, `losses` and `best_outputs` are empty, so their shapes cannot be compared.
        fits = isinstance(found, Tensor) and (now == then or not expected.numel())
        return None if fits else f"{path} is {then} in the checkpoint, but {now} in this run"
    if not isinstance(expected, dict | list | tuple):
        kind = str if isinstance(expected, str) else int | float
        # For example, `best` is None in a new run, and None or a number in a checkpoint.
        fits = isinstance(found, kind) or found is expected is None
        return None if fits else f"{path} is {found!s:.40}"
    if not isinstance(found, dict | list):
        return f"{path} is {found!s:.40}"
    # JSON turns tuples into lists, and the integer keys of the optimizer state into strings.
    expected, found = _as_dict(expected), _as_dict(found)
    # For example, an optimizer has no state before its first step.
    if not expected:
        return None if _holds_numbers(found) else f"{path} must contain numbers and tensors only"
    for key in sorted(expected.keys() | found.keys()):
        if key not in found or key not in expected:
            return f"{path}/{key} is {'unknown' if key in found else 'missing'}"
        if wrong := validate_checkpoint(expected[key], found[key], f"{path}/{key}"):
            return wrong
    return None


def _describe(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{tuple(value.shape)} {value.dtype}"
    return f"{value!r:.40}"


def _as_dict(value: dict[Any, Any] | list[Any] | tuple[Any, ...]) -> dict[str, Any]:
    pairs = value.items() if isinstance(value, dict) else enumerate(value)
    return {str(key): member for key, member in pairs}


def _holds_numbers(found: Any) -> bool:
    if isinstance(found, dict | list):
        return all(map(_holds_numbers, _as_dict(found).values()))
    return isinstance(found, int | float | Tensor | None)


def upgrade_format_1(plain: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Convert a checkpoint of format 1 to nested state dicts.

    In format 1, the names of tensors contain dots, for example "optimizer.0.exp_avg".
    """
    # `recent` is dropped: it held losses for detecting spikes, which `history` now provides.
    apart = ("about", "seconds", "best_weights", "optimizer", "schedule", "recent")
    state = {key: value for key, value in plain.items() if key not in apart}
    # Format 1 has no tensor `losses` if all losses had been logged.
    state |= {"weights": {}, "rng": {}, "losses": torch.empty(0)}
    moments = {index: dict(values) for index, values in plain["optimizer"]["state"].items()}
    for name, value in tensors.items():
        part, _, rest = name.partition(".")
        if part == "optimizer":
            index, _, key = rest.partition(".")
            moments.setdefault(index, {})[key] = value
        elif rest:
            state.setdefault(part, {})[rest] = value
        else:
            state[part] = value
    state["optimizer"] = {**plain["optimizer"], "state": moments}
    # Format 1 stores all keys of LambdaLR, some of which depend on the version of PyTorch.
    state["schedule"] = {key: plain["schedule"][key] for key in SCHEDULE}
    best = plain["best_weights"]
    return {
        "clock": {"seconds": plain["seconds"]},
        "best_weights": {"file": best["file"] or "", "digest": best["digest"]},
        "state": state,
    }
