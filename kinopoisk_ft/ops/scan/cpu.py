"""The selective scan on a CPU as PyTorch operators over numba kernels.

They compute in float32; u, z and the output may be bfloat16, all else is float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from kinopoisk_ft.ops.scan import cpu_backward as back
from kinopoisk_ft.ops.scan import cpu_forward as fore
from kinopoisk_ft.ops.scan.cpu_backward import BLOCK
from kinopoisk_ft.ops.scan.cpu_inputs import CHUNK
from kinopoisk_ft.ops.scan.cpu_states import GROUP
from kinopoisk_ft.ops.simd.custom_op import below_autograd, differentiate, operator
from kinopoisk_ft.ops.simd.layout import cut, longest_first, pad, rows, strided, zeros
from kinopoisk_ft.ops.simd.register import LANES
from kinopoisk_ft.ops.simd.threads import compiled, share

FORWARD = {torch.float32: fore.forward_float32, torch.bfloat16: fore.forward_bfloat16}
BACKWARD = {torch.float32: back.backward_float32, torch.bfloat16: back.backward_bfloat16}


def selective_scan_numba(
    given: Sequence[Tensor | None], delta_softplus: bool, lengths: Tensor | None
) -> Tensor:
    """As `selective_scan_reference` on (u, delta, A, B, C, D, z, delta_bias), with lengths."""
    tensors = [x if x is None or x.dtype is torch.float32 else x.float() for x in given]
    if {x.dtype for x in (given[0], given[6]) if x is not None} == {torch.bfloat16}:
        tensors[0], tensors[6] = given[0], given[6]
    save = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)
    out: Tensor = scan(*tensors, lengths, delta_softplus, save)[0]
    return out


class _Inputs:
    """What both kernels read; padded copies are kept alive here while the kernels run."""

    def __init__(
        self, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None,
        z: Tensor | None, delta_bias: Tensor | None, lengths: Tensor | None, delta_softplus: bool,
    ) -> None:  # fmt: skip
        self.batch, self.length, self.d_inner = u.shape
        # (d_state, d_inner), both padded: a state with A = B = C = 0 stays zero
        across = pad(pad(A, GROUP).t(), LANES).contiguous()
        self.states, self.width = across.shape
        self.wide = [rows(x) for x in (u, delta, u if z is None else z)]
        self.ordered = longest_first(lengths, u)
        self.plain = [
            across,
            *(pad(x, GROUP).contiguous() for x in (B, C)),
            *(zeros(self.d_inner) if x is None else pad(x, LANES).contiguous()
              for x in (D, delta_bias)),
        ]  # fmt: skip
        addresses = [x.data_ptr() for x in self.plain]
        self.fields = [self.batch, self.length, self.width, self.states]
        self.fields += [int(delta_softplus), int(z is not None)]
        self.fields += [y.buffer_info()[0] for y in self.ordered]
        self.fields += [*(value for x in self.wide for value in strided(x)), *addresses]


def _marks_shape(u: Tensor, A: Tensor) -> tuple[int, int, int, int]:
    batch, length, width = u.shape
    return batch, -(-length // CHUNK), -(-A.shape[1] // GROUP) * GROUP, -(-width // LANES) * LANES


def _scan_fake(u: Tensor, delta: Tensor, A: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return u.new_empty(u.shape), A.new_empty(_marks_shape(u, A) if rest[-1] else 0)


@operator(_scan_fake, "selective_scan")
def scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None,
    delta_bias: Tensor | None, lengths: Tensor | None, delta_softplus: bool, save: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return the output and, with `save`, the states at the chunk starts for the backward."""
    x = _Inputs(u, delta, A, B, C, D, z, delta_bias, lengths, delta_softplus)
    out = u.new_empty(x.batch, x.length, x.width)
    marks = A.new_empty(_marks_shape(u, A) if save else 0)
    tasks = x.batch * -(-x.width // fore.BLOCK)
    fields = [*x.fields, marks.data_ptr(), out.data_ptr(), int(save)]
    share(compiled(FORWARD[u.dtype]), tasks, fields)
    return cut(out, x.d_inner), marks


def _scan_backward_fake(
    grad: Tensor, marks: Tensor, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor,
    D: Tensor | None, z: Tensor | None, *rest: Any,
) -> tuple[Tensor, ...]:  # fmt: skip
    width, gate = (u.shape[2],), (0,) if z is None else u.shape
    found = [x.new_empty(x.shape) for x in (u, delta, A, B, C)]
    return (*found, A.new_empty(width), u.new_empty(gate), A.new_empty(width))


@operator(_scan_backward_fake, "selective_scan_backward")
def scan_backward(
    grad: Tensor, marks: Tensor,
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None,
    delta_bias: Tensor | None, lengths: Tensor | None, delta_softplus: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Return the gradients of u, delta, A, B, C, D, z, delta_bias (of absent ones: anything)."""
    x = _Inputs(u, delta, A, B, C, D, z, delta_bias, lengths, delta_softplus)
    blocks = -(-x.width // BLOCK)
    wide = (x.batch, x.length, x.width)
    grad_u, grad_delta = u.new_empty(wide), delta.new_empty(wide)
    grad_z = u.new_empty(0 if z is None else wide)
    grad_A, grad_D, grad_bias = (A.new_empty(shape) for shape in (A.shape, x.width, x.width))
    grad_B, grad_C = (A.new_empty(x.batch, x.length, x.states) for _ in "BC")
    sizes = [x.batch * x.states * x.width, *[blocks * grad_B.numel()] * 2, 2 * x.batch * x.width]
    parts = A.new_empty(sum(sizes))
    places = [parts.data_ptr() + 4 * start for start in accumulate([0, *sizes[:-1]])]
    grad = rows(grad)
    fields = [*x.fields, marks.data_ptr(), *strided(grad)]
    fields += [*(g.data_ptr() for g in (grad_u, grad_delta, grad_z)), *places, 0, *A.shape]
    fields += [g.data_ptr() for g in (grad_A, grad_B, grad_C, grad_D, grad_bias)]
    share(compiled(BACKWARD[u.dtype]), x.batch * blocks, fields)
    grad_u, grad_delta, grad_D, grad_bias = (
        cut(g, x.d_inner) for g in (grad_u, grad_delta, grad_D, grad_bias)
    )
    grad_z = grad_z if z is None else cut(grad_z, x.d_inner)
    grad_B, grad_C = cut(grad_B, A.shape[1]), cut(grad_C, A.shape[1])
    return grad_u, grad_delta, grad_A, grad_B, grad_C, grad_D, grad_z, grad_bias


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Any:
        *tensors, ctx.delta_softplus, _ = inputs
        out, marks = below_autograd(scan, *inputs)
        ctx.save_for_backward(marks, *tensors)
        ctx.mark_non_differentiable(marks)
        ctx.set_materialize_grads(False)  # those of the marks would be megabytes of zeros
        return out, marks

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: None) -> tuple[Tensor | None, ...]:
        marks, *tensors = ctx.saved_tensors
        grads = scan_backward(grad, marks, *tensors, ctx.delta_softplus)
        present = (g if x is not None else None for x, g in zip(tensors[:8], grads, strict=True))
        return (*present, None, None, None)


differentiate(scan, _Scan)
