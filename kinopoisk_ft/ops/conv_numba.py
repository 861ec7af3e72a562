"""Causal depthwise convolution and SiLU on a CPU as PyTorch operators over numba kernels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kinopoisk_ft.ops import conv_rows
from kinopoisk_ft.ops.lanes import LANES
from kinopoisk_ft.ops.memory import longest_first, pad, rows, strided
from kinopoisk_ft.ops.threads import compiled, share


class _Inputs:
    """What both kernels read; padded copies are kept alive here while the kernels run."""

    def __init__(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, lengths: Tensor | None
    ) -> None:
        taps = pad(weight.t(), LANES).contiguous()
        offset = pad(x.new_zeros(x.shape[2]) if bias is None else bias, LANES).contiguous()
        self.taps, self.width = taps.shape
        self.alive = (*longest_first(lengths, x), taps, offset, rows(x))
        self.shape = (x.shape[0], x.shape[1], self.width)
        self.tasks = x.shape[0] * -(-self.width // conv_rows.BLOCK)
        addresses = [tensor.data_ptr() for tensor in self.alive[:4]]
        self.fields = [*self.shape, self.taps, *addresses, *strided(self.alive[4])]


@torch.library.custom_op("kinopoisk_ft::causal_conv1d", mutates_args=(), device_types="cpu")
def conv(x: Tensor, weight: Tensor, bias: Tensor | None, lengths: Tensor | None) -> Tensor:
    """Return silu(causal convolution), (batch, length, d_inner)."""
    inputs = _Inputs(x, weight, bias, lengths)
    out = x.new_empty(inputs.shape)
    share(compiled(conv_rows.convolve), inputs.tasks, [*inputs.fields, out.data_ptr()])
    return out[..., : x.shape[2]].contiguous()


@torch.library.custom_op(
    "kinopoisk_ft::causal_conv1d_backward", mutates_args=(), device_types="cpu"
)
def conv_backward(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, lengths: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of x, weight and bias."""
    inputs = _Inputs(x, weight, bias, lengths)
    grad_x = x.new_empty(inputs.shape)
    sums = x.new_empty(x.shape[0], inputs.taps + 1, inputs.width)
    grad = rows(grad)
    fields = [*inputs.fields, *strided(grad), grad_x.data_ptr(), sums.data_ptr()]
    share(compiled(conv_rows.convolve_back), inputs.tasks, fields)
    sums = sums.sum(0)[:, : x.shape[2]]
    return grad_x[..., : x.shape[2]].contiguous(), sums[:-1].t().contiguous(), sums[-1].clone()


@conv.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None, lengths: Tensor | None) -> Tensor:
    return x.new_empty(x.shape)


@conv_backward.register_fake
def _(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, lengths: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(weight.shape), x.new_empty(x.shape[2])


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, bias, lengths = ctx.saved_tensors
    grad_x, grad_weight, grad_bias = conv_backward(grad, x, weight, bias, lengths)
    return grad_x, grad_weight, None if bias is None else grad_bias, None


conv.register_autograd(_differentiate, setup_context=_keep)
