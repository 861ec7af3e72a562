"""The selective scan on a CPU as PyTorch operators over numba kernels, in float32."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from kinopoisk_ft.ops import scan_backward as back
from kinopoisk_ft.ops import scan_forward as fore
from kinopoisk_ft.ops.lane_math import LOG2_E
from kinopoisk_ft.ops.lanes import LANES
from kinopoisk_ft.ops.memory import longest_first, pad, rows, strided
from kinopoisk_ft.ops.scan_problem import CHUNK
from kinopoisk_ft.ops.scan_states import GROUP
from kinopoisk_ft.ops.threads import compiled, share


def selective_scan_numba(
    tensors: Sequence[Tensor | None], delta_softplus: bool, lengths: Tensor | None
) -> Tensor:
    """As `selective_scan_reference` on (u, delta, A, B, C, D, z, delta_bias), with lengths."""
    save = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)
    out, _ = scan(*tensors, lengths, delta_softplus, save)
    return out


class _Inputs:
    """What both kernels read; padded copies are kept alive here while the kernels run."""

    def __init__(
        self, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None,
        z: Tensor | None, delta_bias: Tensor | None, lengths: Tensor | None, delta_softplus: bool,
    ) -> None:  # fmt: skip
        self.batch, self.length, self.d_inner = u.shape
        # (d_state, d_inner), both padded: a state with A = B = C = 0 stays zero
        rate = pad(pad(A * float(LOG2_E), GROUP).t(), LANES).contiguous()
        self.states, self.width = rate.shape
        absent = u.new_zeros(self.d_inner)
        vectors = [pad(absent if x is None else x, LANES).contiguous() for x in (D, delta_bias)]
        self.wide = [rows(x) for x in (u, delta, u if z is None else z)]
        self.plain = [
            *longest_first(lengths, u),
            rate,
            *(pad(x, GROUP).contiguous() for x in (B, C)),
        ]
        self.plain += vectors
        addresses = [x.data_ptr() for x in self.plain]
        self.fields = [self.batch, self.length, self.width, self.states]
        self.fields += [int(delta_softplus), int(z is not None), *addresses[:2]]
        self.fields += [*(value for x in self.wide for value in strided(x)), *addresses[2:]]


def _marks_shape(u: Tensor, A: Tensor) -> tuple[int, int, int, int]:
    batch, length, width = u.shape
    return batch, -(-length // CHUNK), -(-A.shape[1] // GROUP) * GROUP, -(-width // LANES) * LANES


@torch.library.custom_op("kinopoisk_ft::selective_scan", mutates_args=(), device_types="cpu")
def scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None,
    delta_bias: Tensor | None, lengths: Tensor | None, delta_softplus: bool, save: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return the output and, with `save`, the states at the chunk starts for the backward."""
    x = _Inputs(u, delta, A, B, C, D, z, delta_bias, lengths, delta_softplus)
    out = u.new_empty(x.batch, x.length, x.width)
    marks = u.new_empty(_marks_shape(u, A) if save else 0)
    tasks = x.batch * -(-x.width // fore.BLOCK)
    fields = [*x.fields, marks.data_ptr(), out.data_ptr(), int(save)]
    share(compiled(fore.forward), tasks, fields)
    return out[..., : x.d_inner].contiguous(), marks


@torch.library.custom_op(
    "kinopoisk_ft::selective_scan_backward", mutates_args=(), device_types="cpu"
)
def scan_backward(
    grad: Tensor, marks: Tensor,
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None,
    delta_bias: Tensor | None, lengths: Tensor | None, delta_softplus: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Return the gradients of u, delta, A, B, C, D, z, delta_bias (of absent ones: anything)."""
    x = _Inputs(u, delta, A, B, C, D, z, delta_bias, lengths, delta_softplus)
    blocks = -(-x.width // back.BLOCK)
    wide = (x.batch, x.length, x.width)
    grad_u, grad_delta = u.new_empty(wide), u.new_empty(wide)
    grad_z = u.new_empty(0 if z is None else wide)
    grad_rate = u.new_empty(x.batch, x.states, x.width)
    grad_B, grad_C = (u.new_empty(blocks, x.batch, x.length, x.states) for _ in "BC")
    sums = u.new_empty(x.batch, 2, x.width)
    results = (grad_u, grad_delta, grad_z, grad_rate, grad_B, grad_C, sums)
    grad = rows(grad)
    fields = [*x.fields, marks.data_ptr(), *strided(grad), *(r.data_ptr() for r in results)]
    share(compiled(back.backward), x.batch * blocks, fields)
    real, states = slice(x.d_inner), slice(A.shape[1])
    grad_u, grad_delta, grad_z = (g[..., real].contiguous() for g in (grad_u, grad_delta, grad_z))
    grad_A = grad_rate.sum(0)[states, real].t().contiguous()
    grad_B, grad_C = (g.sum(0)[..., states].contiguous() for g in (grad_B, grad_C))
    grad_D, grad_bias = sums.sum(0)[:, real].unbind()
    return grad_u, grad_delta, grad_A, grad_B, grad_C, grad_D.clone(), grad_z, grad_bias.clone()


@scan.register_fake
def _(u: Tensor, delta: Tensor, A: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return u.new_empty(u.shape), u.new_empty(_marks_shape(u, A) if rest[-1] else 0)


@scan_backward.register_fake
def _(
    grad: Tensor, marks: Tensor, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor,
    D: Tensor | None, z: Tensor | None, *rest: Any,
) -> tuple[Tensor, ...]:  # fmt: skip
    width, gate = (u.shape[2],), (0,) if z is None else u.shape
    shapes = (u.shape, u.shape, A.shape, B.shape, C.shape, width, gate, width)
    return tuple(u.new_empty(shape) for shape in shapes)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.delta_softplus, _ = inputs
    ctx.save_for_backward(output[1], *tensors)
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)  # the saved states' gradient would be megabytes of zeros


def _differentiate(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    marks, *tensors = ctx.saved_tensors
    grads = scan_backward(grad, marks, *tensors, ctx.delta_softplus)
    present = (g if x is not None else None for x, g in zip(tensors[:8], grads, strict=True))
    return (*present, None, None, None)


scan.register_autograd(_differentiate, setup_context=_keep)
