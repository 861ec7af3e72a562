"""Root mean square normalisation on a CPU as PyTorch operators over numba kernels.

They compute in float32; the output may be bfloat16.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kinopoisk_ft.ops import rms_norm_rows as kernels
from kinopoisk_ft.ops.lanes import LANES
from kinopoisk_ft.ops.memory import cut, ones, pad
from kinopoisk_ft.ops.operators import below_autograd, differentiate, operator
from kinopoisk_ft.ops.threads import compiled, share

FORWARD = {
    torch.float32: kernels.normalise_float32,
    torch.bfloat16: kernels.normalise_bfloat16,
}
BACKWARD = {
    torch.float32: kernels.normalise_back_float32,
    torch.bfloat16: kernels.normalise_back_bfloat16,
}


class _Inputs:
    """What both kernels read; padded copies are kept alive here while the kernels run."""

    def __init__(self, x: Tensor, weight: Tensor | None, eps: float) -> None:
        real = x.shape[-1]
        self.x = pad(x.reshape(-1, real), LANES).contiguous()
        self.rows, self.width = self.x.shape
        self.weight = ones(real) if weight is None else pad(weight, LANES).contiguous()
        self.numbers = torch.tensor([1 / real, eps], dtype=torch.float32, device="cpu")
        self.tasks = -(-self.rows // kernels.ROWS)
        alive = (self.numbers, self.x, self.weight)
        self.fields = [self.rows, self.width, *(y.data_ptr() for y in alive)]


def _normalise_fake(
    x: Tensor, weight: Tensor | None, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape, dtype=dtype), x.new_empty(x.shape[:-1].numel())


@operator(_normalise_fake, "rms_norm")
def normalise(
    x: Tensor, weight: Tensor | None, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Return the output, of that dtype, and what each row was multiplied by."""
    inputs = _Inputs(x, weight, eps)
    out = x.new_empty(inputs.rows, inputs.width, dtype=dtype)
    scales = x.new_empty(inputs.rows)
    fields = [*inputs.fields, out.data_ptr(), scales.data_ptr()]
    share(compiled(FORWARD[dtype]), inputs.tasks, fields)
    return cut(out, x.shape[-1]).view(x.shape), scales


def _normalise_backward_fake(
    grad: Tensor, scales: Tensor, x: Tensor, weight: Tensor | None
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(x.shape[-1])


@operator(_normalise_backward_fake, "rms_norm_backward")
def normalise_backward(
    grad: Tensor, scales: Tensor, x: Tensor, weight: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return the gradients of x and weight."""
    inputs = _Inputs(x, weight, 0.0)
    grad = pad(grad.reshape(inputs.rows, -1), LANES).contiguous()
    grad_x, parts = torch.empty_like(inputs.x), x.new_empty(inputs.tasks, inputs.width)
    alive = (grad, scales, grad_x, parts)
    fields = [*inputs.fields, *(y.data_ptr() for y in alive)]
    share(compiled(BACKWARD[grad.dtype]), inputs.tasks, fields)
    return cut(grad_x, x.shape[-1]).view(x.shape), cut(parts.sum(0), x.shape[-1])


class _Normalise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, eps: float, dtype: torch.dtype) -> Any:
        out, scales = below_autograd(normalise, x, weight, eps, dtype)
        ctx.save_for_backward(scales, x, weight)
        ctx.mark_non_differentiable(scales)
        ctx.set_materialize_grads(False)
        return out, scales

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: None) -> tuple[Tensor | None, ...]:
        scales, x, weight = ctx.saved_tensors
        grad_x, grad_weight = normalise_backward(grad, scales, x, weight)
        return grad_x, None if weight is None else grad_weight, None, None


differentiate(normalise, _Normalise)
