"""Compile the model with `torch.compile`."""

from __future__ import annotations

import logging
from typing import Any, Literal, cast

import torch
from torch import nn

from kinopoisk_ft.errors import UserError, first_line
from kinopoisk_ft.training.batching import Examples
from kinopoisk_ft.training.memory import preserve_state, run_longest
from kinopoisk_ft.training.state import State

log = logging.getLogger(__name__)

# The modes of torch.compile; reduce-overhead and max-autotune use CUDA graphs.
Compile = Literal["off", "default", "reduce-overhead", "max-autotune"]


def compile_model(model: nn.Module, mode: Compile, device: torch.device) -> nn.Module:
    """Compile a model with `torch.compile`, unless the mode is "off".

    Shapes are dynamic, because batch size and sequence length differ between batches.

    Raises:
        UserError: torch.compile does not work on this machine.
    """
    if mode == "off":
        return model
    options: dict[str, Any] = {} if mode == "default" else {"mode": mode}
    # The model is compiled at its first call. Compile a small function now, to fail early.
    try:
        torch.compile(torch.sin, **options)(torch.ones(8, device=device))
    except Exception as error:
        raise UserError(
            f"torch.compile does not work on this machine: {type(error).__name__}: "
            f"{first_line(error)}",
            where="trainer.compile",
            fix="install a C++ compiler (for a GPU also triton), or use trainer.compile=off",
        ) from error
    log.info("the model is compiled with torch.compile, mode %s", mode)
    # The returned module wraps `model`, so an optimizer of the parameters of `model` trains both.
    return cast(nn.Module, torch.compile(model, dynamic=True, **options))


def warm_up_compile(state: State, train: Examples, rows: int) -> None:
    """Compile the model now, with one training pass over `rows` copies of the longest review.

    If reviews are divided into windows, `rows` is a number of windows; see `split_batch`.
    """
    # The pass draws dropout masks and computes gradients, which must not affect training.
    with preserve_state(state):
        # PyTorch compiles the backward graph only when it first runs.
        copies = max(1, rows // train.most_windows)
        state.precision.backward(run_longest(state, state.wrapped_model, train, copies))
