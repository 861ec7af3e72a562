"""Apply scaled dot-product attention with dropout of the probabilities, by one of two backends."""

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
        mask: booleans, true where a query attends, or numbers to add; broadcast to (batch, heads,
            queries, keys), and without a gradient. The output of a row without keys is zero.
        p: probability of dropout, 0 to 1; with 0, `scaled_dot_product_attention` runs.
        scale: width**-0.5 if None.
        backend: auto, numba (CPU) or torch (`scaled_dot_product_attention`).

    Returns:
        (batch, heads, queries, width) in the dtype of q.

    Raises:
        ValueError: p is not between 0 and 1.
        UserError: the backend cannot run here.
    """
    # The same default as in PyTorch.
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    chosen = choose_backend("attention", backend, BACKENDS, q.device, q.dtype)
    if p == 0 or chosen == "torch":
        return nn.functional.scaled_dot_product_attention(q, k, v, mask, p, scale=scale)
    # A view: the kernel reads what a mask repeats only once.
    if mask is not None:
        mask = mask.expand(*q.shape[:3], k.shape[2])
    # The kernels do not read float16.
    inputs = (q, k, v) if q.dtype in FORWARD else (q.float(), k.float(), v.float())
    out: Tensor = attend(*inputs, mask, draw_key(), p, scale)[0]
    return out.to(q.dtype)
