"""Apply scaled dot-product attention with dropout."""

from __future__ import annotations

from torch import Tensor, nn

from kinopoisk_ft.ops.backends import NUMBA_ERROR, choose_backend
from kinopoisk_ft.ops.dropout.op import BACKENDS, draw_key

if NUMBA_ERROR is None:
    from kinopoisk_ft.ops.attention.cpu import FORWARD, attend


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    p: float,
    scale: float | None = None,
    backend: str = "auto",
) -> Tensor:
    """Compute dropout(softmax(scale q k^T + mask)) v (Vaswani et al., 2017).

    Args:
        q: (batch, heads, queries, width).
        k, v: (batch, heads, keys, width).
        mask: booleans or numbers, broadcast to (batch, heads, queries, keys). A boolean is true
            where a query attends to a key. Numbers are added to the logits. The mask gets no
            gradient. If all keys of a query are masked, the output is zero.
        p: dropout probability, from 0 to 1.
        scale: factor of q k^T; width**-0.5 if None.
        backend: auto (the fastest), numba (on a CPU) or torch (`scaled_dot_product_attention`).

    Returns:
        (batch, heads, queries, width) in the dtype of q.

    Raises:
        ValueError: p is not between 0 and 1.
        UserError: the backend is unknown or cannot process these tensors.
    """
    # This is the default of PyTorch.
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    chosen = choose_backend("attention", backend, BACKENDS, q.device, q.dtype, shape=q.shape)
    if p == 0 or chosen == "torch":
        return nn.functional.scaled_dot_product_attention(q, k, v, mask, p, scale=scale)
    # `expand` returns a view without copies, and `attend` stores repeated values only once.
    if mask is not None:
        mask = mask.expand(*q.shape[:3], k.shape[2])
    # The kernels support float32 and bfloat16, but not float16.
    inputs = (q, k, v) if q.dtype in FORWARD else (q.float(), k.float(), v.float())
    out: Tensor = attend(*inputs, mask, draw_key(), p, scale)[0]
    return out.to(q.dtype)
