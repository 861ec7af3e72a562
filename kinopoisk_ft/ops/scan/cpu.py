"""Implement the selective scan on a CPU with numba kernels.

The kernels compute in float32. The inputs u and z and the output are float32 or bfloat16. All other
tensors are float32.
"""

from __future__ import annotations

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
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor,
    lengths: Tensor | None,
) -> Tensor:  # fmt: skip
    """Compute the selective scan of each row up to its padding. The output is zero at padding."""
    # The kernels can read u and z in bfloat16, but only if both have this dtype.
    if not u.dtype == z.dtype == torch.bfloat16:
        u, z = u.float(), z.float()
    tensors = (u, *(x.float() for x in (delta, A, B, C, D)), z)
    save = torch.is_grad_enabled() and any(x.requires_grad for x in tensors)
    out: Tensor = scan(*tensors, lengths, save)[0]
    return out


class _Inputs:
    def __init__(
        self, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor,
        lengths: Tensor | None,
    ) -> None:  # fmt: skip
        self.batch, self.length, self.d_inner = u.shape
        # Transpose A to (d_state, d_inner) and zero-pad both dimensions. A padded state stays zero,
        # because B and C are zero there.
        A = layout.pad(layout.pad(A, GROUP).t(), LANES).contiguous()
        self.states, self.width = A.shape
        # A kernel gets only addresses, so keep the tensors until the kernel has finished.
        self.strided = [layout.align_channels(x) for x in (u, delta, z)]
        self.rows = layout.sort_by_length(lengths, u)
        B, C = (layout.pad(x, GROUP).contiguous() for x in (B, C))
        self.contiguous = [A, B, C, layout.pad(D, LANES).contiguous()]
        # The fields have the order of `ScanInputs`.
        self.fields = [self.batch, self.length, self.width, self.states]
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
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor,
    lengths: Tensor | None, save: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Compute the output (batch, length, d_inner) and, if `save` is true, the saved states.

    These are the states before each chunk, (batch, chunks, states, width), with d_state and d_inner
    padded to `states` and `width`. If `save` is false, the second result is an empty tensor.
    """
    x = _Inputs(u, delta, A, B, C, D, z, lengths)
    out = u.new_empty(x.batch, x.length, x.width)
    saved = A.new_empty(_saved_shape(u, A) if save else 0)
    # A task is one row and one block of channels. -(-a // b) rounds up.
    tasks = x.batch * -(-x.width // cpu_forward.BLOCK)
    fields = [*x.fields, saved.data_ptr(), out.data_ptr(), int(save)]
    run_kernel(FORWARD[u.dtype], tasks, fields)
    return layout.unpad(out, x.d_inner), saved


def _scan_backward_fake(grad: Tensor, saved: Tensor, *inputs: Any) -> tuple[Tensor, ...]:
    # The last input is `lengths`.
    return tuple(x.new_empty(x.shape) for x in inputs[:-1])


@register_op(_scan_backward_fake, "selective_scan_backward")
def scan_backward(
    grad: Tensor, saved: Tensor, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor,
    D: Tensor, z: Tensor, lengths: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Compute the gradients w.r.t. u, delta, A, B, C, D and z.

    grad, saved: the gradient of the output, and the states that `scan` returned.
    """
    x = _Inputs(u, delta, A, B, C, D, z, lengths)
    blocks = -(-x.width // cpu_backward.BLOCK)
    wide = (x.batch, x.length, x.width)
    grad_u, grad_delta, grad_z = (y.new_empty(wide) for y in (u, delta, z))
    # The kernel writes partial sums: of A and D per row, of B and C per block of channels.
    parts_A, parts_D = A.new_empty(x.batch, x.states, x.width), A.new_empty(x.batch, x.width)
    parts_B, parts_C = (A.new_empty(blocks, x.batch, x.length, x.states) for _ in "BC")
    grad = layout.align_channels(grad)
    # `cpu_backward` lists the fields in this order.
    results = (grad_u, grad_delta, grad_z, parts_A, parts_B, parts_C, parts_D)
    fields = [*x.fields, saved.data_ptr(), *layout.describe_memory(grad)]
    fields += [g.data_ptr() for g in results]
    run_kernel(BACKWARD[u.dtype], x.batch * blocks, fields)
    # PyTorch adds the parts in the same order with any number of threads.
    grad_A = parts_A.sum(0).t()[: x.d_inner, : A.shape[1]].contiguous()
    grad_B, grad_C = (layout.unpad(parts.sum(0), A.shape[1]) for parts in (parts_B, parts_C))
    grad_u, grad_delta, grad_D, grad_z = (
        layout.unpad(g, x.d_inner) for g in (grad_u, grad_delta, parts_D.sum(0), grad_z)
    )
    return grad_u, grad_delta, grad_A, grad_B, grad_C, grad_D, grad_z


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Any:
        out, saved = call_below_autograd(scan, *inputs)
        # The last input is `save`.
        ctx.save_for_backward(saved, *inputs[:-1])
        ctx.mark_non_differentiable(saved)
        # By default PyTorch would allocate megabytes of zeros as the gradient of the saved states.
        ctx.set_materialize_grads(False)
        return out, saved

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: None) -> tuple[Tensor | None, ...]:
        # The inputs `lengths` and `save` have no gradient.
        return (*scan_backward(grad, *ctx.saved_tensors), None, None)


register_autograd(scan, _Scan)
