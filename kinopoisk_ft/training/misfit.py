"""Whether a checkpoint is one that this run could have written, before any of it is taken up.

Digests tell of damage. They say nothing of a checkpoint that was made by hand or by other code.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from kinopoisk_ft.training.capture import plain_values
from kinopoisk_ft.training.checkpoint import trained_tensors
from kinopoisk_ft.training.rng import random_states
from kinopoisk_ft.training.state import State

NUMBER = (int, float)


def misfit(state: State, tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> str | None:
    """Return what does not fit a state that was just set up, None if `restore` can take it up."""
    now: dict[str, Any] = {**plain_values(state), "seconds": {}}
    now["best_weights"] = {"file": None, "digest": ""}
    if plain.get("best") is not None:
        now["best"] = 0.0
    kept = plain.get("schedule")
    if isinstance(kept, dict):  # what a later PyTorch has besides keeps its first value
        inner = now["schedule"].items()
        now["schedule"] = {k: v for k, v in inner if k in kept or k == "lr_lambdas"}
    return (
        _unlike(now, plain, "")
        or _odd_counts(plain)
        or _odd_weights(state, tensors)
        or _odd_optimizer(state, tensors, plain["optimizer"]["state"])
        or _odd_rest(state, tensors)
    )


def _unlike(now: Any, kept: Any, where: str) -> str | None:
    """Return where a value that JSON has kept is of another kind than the one of now."""
    told = f"{where.removeprefix('.')} is of another kind"
    if isinstance(now, dict):
        if not isinstance(kept, Mapping):
            return told
        if missing := [key for key in now if key not in kept]:
            return f"it has no {f'{where}.{missing[0]}'.removeprefix('.')}"
        inner = [(now[key], kept[key], f"{where}.{key}") for key in now]
    elif isinstance(now, list | tuple):
        # An empty list is one that grows.
        if not isinstance(kept, list) or (now and len(kept) != len(now)):
            return told
        inner = [(*pair, f"{where}[{i}]") for i, pair in enumerate(zip(now, kept, strict=False))]
    else:
        kinds = (str,) if isinstance(now, str) else NUMBER
        none = now is None and (kept is None or isinstance(kept, str))
        return None if none or isinstance(kept, kinds) else told
    return next((found for one in inner if (found := _unlike(*one))), None)


def _odd_counts(plain: Mapping[str, Any]) -> str | None:
    rows = [*plain["history"], plain["seconds"]]
    if not all(isinstance(row, dict) and _are_numbers(row.values()) for row in rows):
        return "history or seconds hold more than numbers"
    return None


def _are_numbers(values: Any) -> bool:
    return all(isinstance(value, NUMBER) for value in values)


def _odd_weights(state: State, tensors: Mapping[str, Tensor]) -> str | None:
    kept = {n.partition(".")[2]: v for n, v in tensors.items() if n.startswith("weights.")}
    return _other_tensors("weights", trained_tensors(state.model), kept)


def _other_tensors(part: str, now: Mapping[str, Tensor], kept: Mapping[str, Tensor]) -> str | None:
    if differing := sorted(now.keys() ^ kept.keys()):
        return f"{part}: '{differing[0]}' is {'missing' if differing[0] in now else 'unknown'}"
    for name, value in now.items():
        sizes = [f"{tuple(one.shape)} {one.dtype}" for one in (kept[name], value)]
        if sizes[0] != sizes[1]:
            return f"{part}: '{name}' is {sizes[0]}, not {sizes[1]}"
    return None


def _odd_optimizer(state: State, tensors: Mapping[str, Tensor], values: Any) -> str | None:
    """Look at the state of each weight; its names and sizes are the optimizer's own to choose.

    Those of PyTorch keep what fits the weight, at most summed over some of its dimensions.
    """
    weights = [p for group in state.optimizer.param_groups for p in group["params"]]
    names = [n.split(".", 2)[1:] for n in tensors if n.startswith("optimizer.")]
    known = {str(index) for index in range(len(weights))}
    if not all(len(name) == 2 and name[0] in known for name in names) or not values.keys() <= known:
        return "optimizer: it is of other weights"
    if not all(isinstance(value, dict) for value in values.values()):
        return "optimizer: the state of a weight is of another kind"
    if not type(state.optimizer).__module__.startswith("torch.optim."):
        return None
    for index, key in names:
        kept, now = tensors[f"optimizer.{index}.{key}"].shape, weights[int(index)].shape
        fits = len(kept) in (0, len(now)) and all(
            size in (1, full) for size, full in zip(kept, now, strict=False)
        )
        if not fits:
            return f"optimizer: '{index}.{key}' is {tuple(kept)}, of a weight {tuple(now)}"
    return None


def _odd_rest(state: State, tensors: Mapping[str, Tensor]) -> str | None:
    parts = {name.partition(".")[0] for name in tensors}
    if unknown := parts - {"weights", "optimizer", "rng", "losses", "best_outputs"}:
        return f"'{min(unknown)}' is no part of a checkpoint"
    if "best_outputs" not in tensors or tensors.get("losses", torch.empty(0)).dim() != 1:
        return "best_outputs are missing, or losses are no list"
    kept = {n.partition(".")[2]: v for n, v in tensors.items() if n.startswith("rng.")}
    if told := _other_tensors("rng", random_states(state.precision.device), kept):
        return told
    try:
        torch.Generator().set_state(kept["cpu"])
    except RuntimeError as error:
        return f"rng: {error}"
    return None
