"""Register kernels and their derivatives with PyTorch.

`torch.library.custom_op` does the same, but its checks of each call take about 50 us forward and
backward, as long as a small kernel runs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

# PyTorch removes the operators when this object is deleted.
_LIBRARY = torch.library.Library("kinopoisk_ft", "FRAGMENT")

Operator = Callable[..., Any]


def register_op(fake: Callable[..., Any], name: str) -> Callable[[Callable[..., Any]], Operator]:
    """Register the decorated function as a CPU operator that does not modify its arguments.

    Args:
        fake: takes the same arguments and returns empty tensors of the operator's output shapes.
        name: name of the operator in `torch.ops.kinopoisk_ft`.
    """

    def register(kernel: Callable[..., Any]) -> Operator:
        schema = torch.library.infer_schema(kernel, mutates_args=())
        # The tag tells torch.compile that it can trace the operator.
        _LIBRARY.define(name + schema, tags=torch.Tag.pt2_compliant_tag)
        _LIBRARY.impl(name, kernel, "CPU")
        torch.library.register_fake(f"kinopoisk_ft::{name}", fake, lib=_LIBRARY)
        # The overload, because a call of the packet would look for it each time.
        op: Operator = getattr(torch.ops.kinopoisk_ft, name).default
        return op

    return register


def call_below_autograd(op: Operator, *inputs: Any) -> Any:
    """Call an operator without recording it for the backward pass."""
    # Without this, `record` in `register_autograd` would dispatch to itself.
    with torch._C._AutoDispatchBelowAutograd():
        return op(*inputs)


def register_autograd(op: Operator, function: type[torch.autograd.Function]) -> None:
    """Register the derivative of an operator.

    function: has the arguments and the outputs of the operator.
    """

    def record(*inputs: Any) -> Any:
        if torch.is_grad_enabled() and any(
            isinstance(x, Tensor) and x.requires_grad for x in inputs
        ):
            return function.apply(*inputs)
        return call_below_autograd(op, *inputs)

    _LIBRARY.impl(op, record, "Autograd")
