"""Causal depthwise convolution and SiLU on a CPU as PyTorch operators over numba kernels.

They compute in float32; x and the output may be bfloat16, weight and bias are float32.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kinopoisk_ft.ops import conv_rows
from kinopoisk_ft.ops.lanes import LANES
from kinopoisk_ft.ops.memory import cut, longest_first, pad, rows, strided, zeros
from kinopoisk_ft.ops.operators import below_autograd, differentiate, operator
from kinopoisk_ft.ops.threads import compiled, share

FORWARD = {
    torch.float32: conv_rows.convolve_float32,
    torch.bfloat16: conv_rows.convolve_bfloat16,
}
BACKWARD = {
    torch.float32: conv_rows.convolve_back_float32,
    torch.bfloat16: conv_rows.convolve_back_bfloat16,
}


class _Inputs:
    """What both kernels read; padded copies are kept alive here while the kernels run."""

    def __init__(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, lengths: Tensor | None
    ) -> None:
        taps = pad(weight.t(), LANES).contiguous()
        offset = zeros(x.shape[2]) if bias is None else pad(bias, LANES).contiguous()
        self.taps, self.width = taps.shape
        ordered, source = longest_first(lengths, x), rows(x)
        self.alive = (ordered, source, taps, offset)
        self.shape = (x.shape[0], x.shape[1], self.width)
        self.tasks = x.shape[0] * -(-self.width // conv_rows.BLOCK)
        self.fields = [*self.shape, self.taps, *(y.buffer_info()[0] for y in ordered)]
        self.fields += [taps.data_ptr(), offset.data_ptr(), *strided(source)]


def _conv_fake(x: Tensor, weight: Tensor, bias: Tensor | None, lengths: Tensor | None) -> Tensor:
    return x.new_empty(x.shape)


@operator(_conv_fake, "causal_conv1d")
def conv(x: Tensor, weight: Tensor, bias: Tensor | None, lengths: Tensor | None) -> Tensor:
    """Return silu(causal convolution), (batch, length, d_inner)."""
    inputs = _Inputs(x, weight, bias, lengths)
    out = x.new_empty(inputs.shape)
    share(compiled(FORWARD[x.dtype]), inputs.tasks, [*inputs.fields, out.data_ptr()])
    return cut(out, x.shape[2])


def _conv_backward_fake(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, lengths: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), weight.new_empty(weight.shape), weight.new_empty(x.shape[2])


@operator(_conv_backward_fake, "causal_conv1d_backward")
def conv_backward(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, lengths: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of x, weight and bias."""
    inputs = _Inputs(x, weight, bias, lengths)
    grad_x = x.new_empty(inputs.shape)
    parts = weight.new_empty(x.shape[0], inputs.taps + 1, inputs.width)
    grad = rows(grad)
    fields = [*inputs.fields, *strided(grad), grad_x.data_ptr(), parts.data_ptr()]
    share(compiled(BACKWARD[x.dtype]), inputs.tasks, fields)
    sums = parts.sum(0)[:, : x.shape[2]]
    return cut(grad_x, x.shape[2]), sums[:-1].t().contiguous(), sums[-1].clone()


class _Conv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Any:
        ctx.save_for_backward(*inputs)
        return below_autograd(conv, *inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, lengths = ctx.saved_tensors
        grad_x, grad_weight, grad_bias = conv_backward(grad, x, weight, bias, lengths)
        return grad_x, grad_weight, None if bias is None else grad_bias, None


differentiate(conv, _Conv)
