"""Compute attention between real (non-padding) tokens only, with the GPU kernel of flash-attn."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kinopoisk_ft.ops.gpu_package import GpuPackage
from kinopoisk_ft.ops.self_test import SelfTest, draw_normal
from kinopoisk_ft.ops.shapes import make_length_mask

# Number of heads in the self-test.
HEADS = 2


@dataclass(frozen=True, eq=False)
class RealTokens:
    """Positions of the real (non-padding) tokens of a batch."""

    # (tokens,): positions in the batch flattened to (batch * length,).
    index: Tensor
    # (batch + 1,) int32: cumulative numbers of real tokens, from 0 to the number in all rows.
    cu_seqlens: Tensor
    # Number of real tokens in the longest row.
    max_seqlen: int

    @classmethod
    def from_mask(cls, attention_mask: Tensor) -> RealTokens:
        """Find the tokens whose attention mask (batch, length) is not zero.

        The CPU waits until the GPU has found the tokens.
        """
        real = attention_mask != 0
        lengths = real.sum(1, dtype=torch.int32)
        cu_seqlens = nn.functional.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0))
        return cls(real.flatten().nonzero().flatten(), cu_seqlens, int(lengths.max()))


def attention_unpadded(
    q: Tensor, k: Tensor, v: Tensor, tokens: RealTokens, p: float = 0.0, scale: float | None = None
) -> Tensor:
    """Compute dropout(softmax(scale q k^T)) v without padding tokens.

    Args:
        q: (batch, heads, length or 1, width) in fp16 or bf16. With length 1, q contains only the
            first query of each row.
        k, v: (batch, heads, length, width), in the dtype of q.
        tokens: positions of the real tokens.
        p: dropout probability.
        scale: factor of q k^T; width**-0.5 if None.

    Returns:
        (batch, length or 1, heads, width), with zeros at padding tokens.
    """
    from flash_attn import flash_attn_varlen_func

    batch, heads, length, width = k.shape
    # (batch * length, heads, width)
    q, k, v = (x.transpose(1, 2).reshape(-1, heads, width) for x in (q, k, v))
    options = {"dropout_p": p, "softmax_scale": scale}
    starts, longest = tokens.cu_seqlens, tokens.max_seqlen
    if len(q) < len(k):
        # Each row has one query.
        q_starts = torch.arange(batch + 1, dtype=torch.int32, device=q.device)
        k, v = k[tokens.index], v[tokens.index]
        first = flash_attn_varlen_func(q, k, v, q_starts, starts, 1, longest, **options)
        return first.view(batch, 1, heads, width)
    # (tokens, heads, width)
    packed = (x[tokens.index] for x in (q, k, v))
    out = flash_attn_varlen_func(*packed, starts, starts, longest, longest, **options)
    padded = out.new_zeros(batch * length, heads, width).index_copy(0, tokens.index, out)
    return padded.view(batch, length, heads, width)


def draw(batch: int, length: int, width: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Draw random q, k and v (batch, heads, length, width) for the self-test."""
    shape = (batch, HEADS, length, width)
    return {name: draw_normal(generator, *shape) for name in "qkv"}


def _make_mask(q: Tensor) -> Tensor:
    batch, _, length, _ = q.shape
    # (batch, length). Row i, counted from 0, has 3 i padding tokens at the end.
    return make_length_mask(length - 3 * torch.arange(batch, device=q.device), length)


def _compute_reference(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    real = _make_mask(q)
    # (batch, heads, length, width)
    out = nn.functional.scaled_dot_product_attention(q, k, v, real[:, None, None])
    out = torch.where(real[:, None, :, None], out, 0)
    # `_run_kernel` adds two outputs of the first token.
    return torch.cat([2 * out[:, :, :1], out[:, :, 1:]], dim=2)


def _run_kernel(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    dtype, tokens = q.dtype, RealTokens.from_mask(_make_mask(q))
    q, k, v = q.half(), k.half(), v.half()
    # Test all queries, and then only the first query of each row. Add the outputs of this query.
    whole = attention_unpadded(q, k, v, tokens)
    first = attention_unpadded(q[:, :, :1], k, v, tokens)
    return torch.cat([whole[:, :1] + first, whole[:, 1:]], dim=1).transpose(1, 2).to(dtype)


_BUILD = "pip install --no-build-isolation 'flash-attn>=2.3.3'"
PACKAGE = GpuPackage(
    name="flash-attn",
    module="flash_attn",
    extension="flash_attn_2_cuda",
    run=_run_kernel,
    # The kernel computes in fp16, so the tolerance is larger than for float32 kernels.
    self_test=SelfTest(reference=_compute_reference, draw=draw, tolerance=2e-2),
    install=_BUILD,
    rebuild=f"FLASH_ATTENTION_FORCE_BUILD=TRUE {_BUILD} --force-reinstall --no-deps --no-cache-dir",
    # The heads of common encoders have a width of 32 or 64.
    sizes=((2, 40, 32), (2, 300, 64)),
)
