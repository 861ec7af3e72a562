"""All that decides how training goes on, as tensors and plain values, and back."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor, nn

from kinopoisk_ft.training.checkpoint import trained_tensors
from kinopoisk_ft.training.distributed import spread
from kinopoisk_ft.training.rng import random_states, set_random_states
from kinopoisk_ft.training.sharding import part_of, whole
from kinopoisk_ft.training.state import State

COUNTS = (
    "step", "tokens", "best", "best_step", "since_best", "evaluated", "skipped", "bad_in_row",
    "longest_row", "recent", "spikes", "history", "micro_batch_size", "eval_batch_size",
)  # fmt: skip


def capture(state: State) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return what `restore` needs, between two steps: tensors, and values that JSON can hold.

    Tensors are whole on rank 0, whatever part of them each process keeps; all must ask together.
    """
    state.settle()
    trained = trained_tensors(state.model)
    tensors = {f"weights.{name}": whole(value) for name, value in trained.items()}
    optimizer = state.optimizer.state_dict()
    values: dict[str, dict[str, Any]] = {}
    for index, entries in optimizer["state"].items():
        for key, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer.{index}.{key}"] = whole(value)
            else:
                values.setdefault(str(index), {})[key] = value
    if state.losses:
        tensors["losses"] = torch.stack(state.losses)
    tensors["best_outputs"] = state.best_outputs
    random = random_states(state.precision.device)
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
    """Put a state where `capture` found it; tensors are rank 0's, and nothing is a `misfit`."""
    parts: dict[str, dict[str, Tensor]] = {
        "losses": {}, "best_outputs": {}, "optimizer": {}, "rng": {},
    }  # fmt: skip
    trained = trained_tensors(state.model)
    parameters = [p for group in state.optimizer.param_groups for p in group["params"]]
    for name, value in spread(tensors):
        part, _, rest = name.partition(".")
        if part == "weights":
            trained[rest].copy_(part_of(value, trained[rest]))
        elif part == "optimizer":
            parts[part][rest] = part_of(value, parameters[int(rest.partition(".")[0])])
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
    set_random_states(parts["rng"])


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
            flat = whole(parameter).cpu().contiguous().reshape(-1)
            digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()
