"""Register CPU kernels and their backward passes as PyTorch operators.

`torch.library.custom_op` is not used, because its checks take as long as a small kernel (about 50
us).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

# PyTorch removes the operators when this object is deleted, so the module keeps a reference.
_LIBRARY = torch.library.Library("kinopoisk_ft", "FRAGMENT")

Operator = Callable[..., Any]


def register_op(fake: Callable[..., Any], name: str) -> Callable[[Callable[..., Any]], Operator]:
    """Return a decorator that registers a function as a CPU operator.

    The decorated function must not modify its arguments.

    Args:
        fake: function for torch.compile and meta tensors. It takes the same arguments as the
            decorated function, and returns empty tensors with the correct shapes and dtypes.
        name: name of the operator in `torch.ops.kinopoisk_ft`.
    """

    def register(kernel: Callable[..., Any]) -> Operator:
        schema = torch.library.infer_schema(kernel, mutates_args=())
        # The tag tells torch.compile that the operator can be traced.
        _LIBRARY.define(name + schema, tags=torch.Tag.pt2_compliant_tag)
        _LIBRARY.impl(name, kernel, "CPU")
        torch.library.register_fake(f"kinopoisk_ft::{name}", fake, lib=_LIBRARY)
        # Return the overload, because the overload packet would look it up at each call.
        op: Operator = getattr(torch.ops.kinopoisk_ft, name).default
        return op

    return register


def call_below_autograd(op: Operator, *inputs: Any) -> Any:
    """Call an operator without recording the call for the backward pass."""
    # Without this guard, `record` in `register_autograd` would call itself endlessly.
    with torch._C._AutoDispatchBelowAutograd():
        return op(*inputs)


def register_autograd(op: Operator, function: type[torch.autograd.Function]) -> None:
    """Register the backward pass of an operator.

    function: autograd function with the same arguments and outputs as the operator.
    """

    def record(*inputs: Any) -> Any:
        if torch.is_grad_enabled() and any(
            isinstance(x, Tensor) and x.requires_grad for x in inputs
        ):
            return function.apply(*inputs)
        return call_below_autograd(op, *inputs)

    _LIBRARY.impl(op, record, "Autograd")
