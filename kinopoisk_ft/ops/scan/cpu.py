"""Implement the selective scan on a CPU with numba kernels.

The kernels compute in float32. The inputs u and z and the output are float32 or bfloat16. All other
tensors are float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from kinopoisk_ft.ops.scan import cpu_backward, cpu_forward
from kinopoisk_ft.ops.scan.cpu_inputs import CHUNK
from kinopoisk_ft.ops.scan.cpu_states import GROUP
from kinopoisk_ft.ops.simd import layout
from kinopoisk_ft.ops.simd.custom_op import call_below_autograd, register_autograd, register_op
from kinopoisk_ft.ops.simd.register import LANES
from kinopoisk_ft.ops.simd.threads import run_kernel

FORWARD = {
    torch.float32: cpu_forward.scan_forward_float32,
    torch.bfloat16: cpu_forward.scan_forward_bfloat16,
}
BACKWARD = {
    torch.float32: cpu_backward.scan_backward_float32,
    torch.bfloat16: cpu_backward.scan_backward_bfloat16,
}


def selective_scan_numba(
    inputs: Sequence[Tensor | None], delta_softplus: bool, lengths: Tensor | None
) -> Tensor:
    """Compute the selective scan up to the length of each row.

    inputs: u, delta, A, B, C, D, z and delta_bias.
    """
    tensors = [x if x is None or x.dtype is torch.float32 else x.float() for x in inputs]
    # The kernels can read u and z in bfloat16, but only if both have this dtype.
    if {x.dtype for x in (inputs[0], inputs[6]) if x is not None} == {torch.bfloat16}:
        tensors[0], tensors[6] = inputs[0], inputs[6]
    save = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)
    out: Tensor = scan(*tensors, lengths, delta_softplus, save)[0]
    return out


class _Inputs:
    def __init__(
        self, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None,
        z: Tensor | None, delta_bias: Tensor | None, lengths: Tensor | None, delta_softplus: bool,
    ) -> None:  # fmt: skip
        self.batch, self.length, self.d_inner = u.shape
        # Transpose A to (d_state, d_inner) and zero-pad both dimensions. A padded state stays zero,
        # because B and C are zero there.
        A = layout.pad(layout.pad(A, GROUP).t(), LANES).contiguous()
        self.states, self.width = A.shape
        # A kernel gets only addresses, so keep the tensors until the kernel has finished.
        self.strided = [layout.align_channels(x) for x in (u, delta, u if z is None else z)]
        self.rows = layout.sort_by_length(lengths, u)
        self.contiguous = [
            A,
            *(layout.pad(x, GROUP).contiguous() for x in (B, C)),
            *(layout.pad_or_fill(x, self.d_inner, 0.0) for x in (D, delta_bias)),
        ]
        # The fields have the order of `ScanInputs`.
        self.fields = [self.batch, self.length, self.width, self.states]
        self.fields += [int(delta_softplus), int(z is not None)]
        self.fields += [numbers.buffer_info()[0] for numbers in self.rows]
        self.fields += [field for x in self.strided for field in layout.describe_memory(x)]
        self.fields += [x.data_ptr() for x in self.contiguous]


def _saved_shape(u: Tensor, A: Tensor) -> tuple[int, int, int, int]:
    batch, length, width = u.shape
    # (batch, chunks, states, width), including padding.
    return batch, -(-length // CHUNK), -(-A.shape[1] // GROUP) * GROUP, -(-width // LANES) * LANES


def _scan_fake(u: Tensor, delta: Tensor, A: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return u.new_empty(u.shape), A.new_empty(_saved_shape(u, A) if rest[-1] else 0)


@register_op(_scan_fake, "selective_scan")
def scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None,
    delta_bias: Tensor | None, lengths: Tensor | None, delta_softplus: bool, save: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Compute the output, and the state before each chunk (empty without `save`)."""
    x = _Inputs(u, delta, A, B, C, D, z, delta_bias, lengths, delta_softplus)
    out = u.new_empty(x.batch, x.length, x.width)
    saved = A.new_empty(_saved_shape(u, A) if save else 0)
    # A task is one row and one block of channels. -(-a // b) rounds up.
    tasks = x.batch * -(-x.width // cpu_forward.BLOCK)
    fields = [*x.fields, saved.data_ptr(), out.data_ptr(), int(save)]
    run_kernel(FORWARD[u.dtype], tasks, fields)
    return layout.unpad(out, x.d_inner), saved


def _scan_backward_fake(
    grad: Tensor, saved: Tensor, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor,
    D: Tensor | None, z: Tensor | None, *rest: Any,
) -> tuple[Tensor, ...]:  # fmt: skip
    # An operator must return tensors, so the gradient of z is empty if there is no gate.
    width, gate = (u.shape[2],), (0,) if z is None else u.shape
    grads = [x.new_empty(x.shape) for x in (u, delta, A, B, C)]
    return (*grads, A.new_empty(width), u.new_empty(gate), A.new_empty(width))


@register_op(_scan_backward_fake, "selective_scan_backward")
def scan_backward(
    grad: Tensor, saved: Tensor,
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None,
    delta_bias: Tensor | None, lengths: Tensor | None, delta_softplus: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Compute the gradients w.r.t. u, delta, A, B, C, D, z and delta_bias.

    If an input is None, its gradient contains undefined values.
    """
    x = _Inputs(u, delta, A, B, C, D, z, delta_bias, lengths, delta_softplus)
    blocks = -(-x.width // cpu_backward.BLOCK)
    wide = (x.batch, x.length, x.width)
    grad_u, grad_delta = u.new_empty(wide), delta.new_empty(wide)
    grad_z = u.new_empty(0 if z is None else wide)
    grad_A, grad_D, grad_bias = (A.new_empty(shape) for shape in (A.shape, x.width, x.width))
    grad_B, grad_C = (A.new_empty(x.batch, x.length, x.states) for _ in "BC")
    # One allocation for the partial gradients of A, B, C and (D, bias), which the kernel adds up.
    sizes = [x.batch * x.states * x.width, *[blocks * grad_B.numel()] * 2, 2 * x.batch * x.width]
    parts = A.new_empty(sum(sizes))
    # Addresses count bytes, and a float32 has 4 bytes.
    addresses = [parts.data_ptr() + 4 * start for start in accumulate([0, *sizes[:-1]])]
    grad = layout.align_channels(grad)
    # `cpu_backward` lists the fields in this order. The field 0 counts the finished tasks.
    fields = [*x.fields, saved.data_ptr(), *layout.describe_memory(grad)]
    fields += [*(g.data_ptr() for g in (grad_u, grad_delta, grad_z)), *addresses, 0, *A.shape]
    fields += [g.data_ptr() for g in (grad_A, grad_B, grad_C, grad_D, grad_bias)]
    run_kernel(BACKWARD[u.dtype], x.batch * blocks, fields)
    grad_u, grad_delta, grad_D, grad_bias = (
        layout.unpad(g, x.d_inner) for g in (grad_u, grad_delta, grad_D, grad_bias)
    )
    grad_z = grad_z if z is None else layout.unpad(grad_z, x.d_inner)
    grad_B, grad_C = layout.unpad(grad_B, A.shape[1]), layout.unpad(grad_C, A.shape[1])
    return grad_u, grad_delta, grad_A, grad_B, grad_C, grad_D, grad_z, grad_bias


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Any:
        *tensors, ctx.delta_softplus, _ = inputs
        out, saved = call_below_autograd(scan, *inputs)
        ctx.save_for_backward(saved, *tensors)
        ctx.mark_non_differentiable(saved)
        # By default PyTorch would allocate megabytes of zeros as the gradient of the saved states.
        ctx.set_materialize_grads(False)
        return out, saved

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: None) -> tuple[Tensor | None, ...]:
        saved, *tensors = ctx.saved_tensors
        grads = scan_backward(grad, saved, *tensors, ctx.delta_softplus)
        # The inputs are 8 tensors, lengths, delta_softplus and save. The last 3 have no gradient.
        present = (g if x is not None else None for x, g in zip(tensors[:8], grads, strict=True))
        return (*present, None, None, None)


register_autograd(scan, _Scan)
