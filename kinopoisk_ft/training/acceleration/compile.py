"""Training through `torch.compile`: on a GPU it fuses small operators, or replays CUDA graphs."""

from __future__ import annotations

import logging
from typing import Any, Literal, cast

import torch
from torch import nn

from kinopoisk_ft.errors import UserError
from kinopoisk_ft.training.batching import Examples
from kinopoisk_ft.training.memory import preserve_state, run_longest
from kinopoisk_ft.training.state import State

log = logging.getLogger(__name__)

# As torch.compile calls them; reduce-overhead and max-autotune use CUDA graphs.
Compile = Literal["off", "default", "reduce-overhead", "max-autotune"]


def compile_model(model: nn.Module, mode: Compile, device: torch.device) -> nn.Module:
    """Return by what training calls a model: itself, or what compiles it when it is first called.

    Lengths and rows are symbols in the compiled code, since every batch has its own.

    Raises:
        UserError: nothing can be compiled on this machine.
    """
    if mode == "off":
        return model
    options: dict[str, Any] = {} if mode == "default" else {"mode": mode}
    try:
        torch.compile(torch.sin, **options)(torch.ones(8, device=device))
    except Exception as error:
        raise UserError(
            f"torch.compile does not work here: {type(error).__name__}: "
            f"{next(iter(str(error).strip().splitlines()), '')}",
            where="trainer.compile",
            fix="install a C++ compiler (on a GPU also triton), or use trainer.compile=off",
        ) from error
    log.info("training runs through torch.compile, mode %s", mode)
    return cast(nn.Module, torch.compile(model, dynamic=True, **options))


def warm_up_compile(state: State, train: Examples, rows: int) -> None:
    """Compile before the first step, with the largest batch; weights and generators stay."""
    with preserve_state(state):
        state.precision.backward(run_longest(state, state.wrapped_model, train, rows))
