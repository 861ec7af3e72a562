"""Register kernels and their derivatives with PyTorch, as `torch.library.custom_op` does.

Its checks of each call take some 50 us forward and backward, as long as a small kernel runs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_LIBRARY = torch.library.Library("kinopoisk_ft", "FRAGMENT")

Operator = Callable[..., Any]


def operator(fake: Callable[..., Any], name: str) -> Callable[[Callable[..., Any]], Operator]:
    """Make the decorated function a CPU operator; it writes to none of the tensors it is given.

    Args:
        fake: returns empty tensors of the shapes that the operator returns for its arguments.
    """

    def register(kernel: Callable[..., Any]) -> Operator:
        schema = torch.library.infer_schema(kernel, mutates_args=())
        _LIBRARY.define(name + schema, tags=torch.Tag.pt2_compliant_tag)
        _LIBRARY.impl(name, kernel, "CPU")
        torch.library.register_fake(f"kinopoisk_ft::{name}", fake, lib=_LIBRARY)
        found: Operator = getattr(torch.ops.kinopoisk_ft, name).default
        return found

    return register


def below_autograd(op: Operator, *inputs: Any) -> Any:
    """Call an operator without recording it."""
    with torch._C._AutoDispatchBelowAutograd():
        return op(*inputs)


def differentiate(op: Operator, function: type[torch.autograd.Function]) -> None:
    """Give an operator its derivative: `function` takes and returns what it does."""

    def record(*inputs: Any) -> Any:
        if torch.is_grad_enabled() and any(
            isinstance(x, Tensor) and x.requires_grad for x in inputs
        ):
            return function.apply(*inputs)
        return below_autograd(op, *inputs)

    _LIBRARY.impl(op, record, "Autograd")
