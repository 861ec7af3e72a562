"""All that decides how training goes on, as tensors and plain values, and back."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from kinopoisk_ft.training.checkpoint.best import trained_tensors
from kinopoisk_ft.training.distributed.processes import broadcast_tensors
from kinopoisk_ft.training.distributed.sharding import gather_tensor, shard_like
from kinopoisk_ft.training.rng import get_rng_states, set_rng_states
from kinopoisk_ft.training.state import State

COUNTS = (
    "step", "tokens", "best", "best_step", "since_best", "evaluated", "skipped", "bad_in_row",
    "longest_row", "recent", "spikes", "history", "micro_batch_size", "eval_batch_size",
)  # fmt: skip


def capture(state: State) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return what `restore` needs, between two steps: tensors, and values that JSON can hold.

    Tensors are whole on rank 0, whatever part of them each process keeps; all must ask together.
    """
    state.sync_skipped_steps()
    trained = trained_tensors(state.model)
    tensors = {f"weights.{name}": gather_tensor(value) for name, value in trained.items()}
    optimizer = state.optimizer.state_dict()
    values: dict[str, dict[str, Any]] = {}
    for index, entries in optimizer["state"].items():
        for key, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer.{index}.{key}"] = gather_tensor(value)
            else:
                values.setdefault(str(index), {})[key] = value
    if state.losses:
        tensors["losses"] = torch.stack(state.losses)
    tensors["best_outputs"] = state.best_outputs
    random = get_rng_states(state.precision.device)
    tensors |= {f"rng.{device}": value for device, value in random.items()}
    plain = plain_values(state)
    plain["optimizer"]["state"] = values
    return tensors, plain


def plain_values(state: State) -> dict[str, Any]:
    """Return what of a state JSON can hold, but for what the optimizer keeps of each weight."""
    groups = state.optimizer.state_dict()["param_groups"]
    return {
        **{key: getattr(state, key) for key in COUNTS},
        "optimizer": {"state": {}, "param_groups": groups},
        "schedule": state.schedule.state_dict(),
        "scaler": state.precision.state_dict(),
    }


def restore(state: State, tensors: dict[str, Tensor], plain: dict[str, Any]) -> None:
    """Put a state where `capture` found it; the tensors are those of rank 0."""
    parts: dict[str, dict[str, Tensor]] = {
        "losses": {}, "best_outputs": {}, "optimizer": {}, "rng": {},
    }  # fmt: skip
    trained = trained_tensors(state.model)
    parameters = [p for group in state.optimizer.param_groups for p in group["params"]]
    for name, value in broadcast_tensors(tensors):
        part, _, rest = name.partition(".")
        if part == "weights":
            trained[rest].copy_(shard_like(value, trained[rest]))
        elif part == "optimizer":
            parts[part][rest] = shard_like(value, parameters[int(rest.partition(".")[0])])
        else:
            parts[part][rest] = value
    state.optimizer.load_state_dict(_optimizer(state, parts["optimizer"], plain["optimizer"]))
    state.schedule.load_state_dict(plain["schedule"])
    state.precision.load_state_dict(plain["scaler"])
    for key in COUNTS:
        setattr(state, key, plain[key])
    for losses in parts["losses"].values():
        state.losses = list(losses.to(state.precision.device))
    state.best_outputs = parts["best_outputs"][""]
    set_rng_states(parts["rng"])


def _optimizer(state: State, tensors: dict[str, Tensor], plain: dict[str, Any]) -> dict[str, Any]:
    """Return an optimizer's state dict; JSON has made lists of its tuples and text of its keys."""
    found = {int(index): dict(values) for index, values in plain["state"].items()}
    for name, value in tensors.items():
        index, _, key = name.partition(".")
        found.setdefault(int(index), {})[key] = value
    groups = []
    for now, kept in zip(state.optimizer.param_groups, plain["param_groups"], strict=True):
        tuples = {key for key, value in now.items() if isinstance(value, tuple)}
        groups.append({k: tuple(v) if k in tuples else v for k, v in kept.items()})
    return {"state": found, "param_groups": groups}


def frozen_digest(model: nn.Module) -> str:
    """Return a SHA-256 digest, hex, of the parameters that training leaves as they are."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype};".encode())
            flat = gather_tensor(parameter).cpu().contiguous().reshape(-1)
            digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()


NUMBER = (int, float)


def validate_checkpoint(
    state: State, tensors: Mapping[str, Tensor], plain: Mapping[str, Any]
) -> str | None:
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
    if told := _other_tensors("rng", get_rng_states(state.precision.device), kept):
        return told
    try:
        torch.Generator().set_state(kept["cpu"])
    except RuntimeError as error:
        return f"rng: {error}"
    return None
