"""Attention over the real tokens of a padded batch, by the kernel of the package flash-attn."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kinopoisk_ft.ops.gpu_package import GpuPackage
from kinopoisk_ft.ops.lengths import real_positions
from kinopoisk_ft.ops.self_test import Subject

HEADS = 2  # of the self-test


@dataclass(frozen=True, eq=False)
class RealTokens:
    """Where the real tokens of a padded batch (batch, length) are; found once for all layers."""

    index: Tensor  # (tokens,) in the flattened batch
    starts: Tensor  # (batch + 1,) int32: of each row among the real tokens, and their end
    longest: int

    @classmethod
    def of(cls, attention_mask: Tensor) -> RealTokens:
        """Read a mask (batch, length), nonzero at real tokens; waits for the device."""
        real = attention_mask != 0
        lengths = real.sum(1, dtype=torch.int32)
        starts = nn.functional.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0))
        return cls(real.flatten().nonzero().flatten(), starts, int(lengths.max()))


def attention_unpadded(
    q: Tensor, k: Tensor, v: Tensor, real: RealTokens, p: float = 0.0, scale: float | None = None
) -> Tensor:
    """Return dropout(softmax(scale q k^T)) v among each row's real tokens, and zeros at pads.

    Args:
        q: (batch, heads, length or 1, width), of all tokens or of the first, fp16 or bf16.
        k, v: (batch, heads, length, width).
        p: probability of dropout. scale: width**-0.5 if None.

    Returns:
        (batch, length or 1, heads, width).
    """
    from flash_attn import flash_attn_varlen_func

    batch, heads, length, width = k.shape
    q, k, v = (x.transpose(1, 2).reshape(-1, heads, width) for x in (q, k, v))
    options = {"dropout_p": p, "softmax_scale": scale}
    if len(q) < len(k):
        each = torch.arange(batch + 1, dtype=torch.int32, device=q.device)
        k, v = k[real.index], v[real.index]
        first = flash_attn_varlen_func(q, k, v, each, real.starts, 1, real.longest, **options)
        return first.view(batch, 1, heads, width)
    packed = (x[real.index] for x in (q, k, v))
    out = flash_attn_varlen_func(
        *packed, real.starts, real.starts, real.longest, real.longest, **options
    )
    padded = out.new_zeros(batch * length, heads, width).index_copy(0, real.index, out)
    return padded.view(batch, length, heads, width)


def draw(batch: int, length: int, width: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Return q, k and v of a self-test, (batch, heads, length, width)."""
    shape = (batch, HEADS, length, width)
    return {name: torch.randn(shape, generator=generator) for name in "qkv"}


def _mask(q: Tensor) -> Tensor:
    """Each row of the self-test is three tokens shorter than the one before."""
    batch, _, length, _ = q.shape
    return real_positions(length - 3 * torch.arange(batch, device=q.device), length)


def _reference(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    real = _mask(q)
    out = nn.functional.scaled_dot_product_attention(q, k, v, real[:, None, None])
    out = torch.where(real[:, None, :, None], out, 0)
    return torch.cat([2 * out[:, :, :1], out[:, :, 1:]], dim=2)


def _tested(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    dtype, real = q.dtype, RealTokens.of(_mask(q))
    q, k, v = q.half(), k.half(), v.half()
    whole = attention_unpadded(q, k, v, real)
    first = attention_unpadded(q[:, :, :1], k, v, real)  # its answer is there twice
    return torch.cat([whole[:, :1] + first, whole[:, 1:]], dim=1).transpose(1, 2).to(dtype)


_BUILD = "pip install --no-build-isolation 'flash-attn>=2.3.3'"
PACKAGE = GpuPackage(
    name="flash-attn",
    module="flash_attn",
    extension="flash_attn_2_cuda",
    run=_tested,
    subject=Subject(reference=_reference, draw=draw, tolerance=2e-2),  # fp16
    install=_BUILD,
    rebuild=f"FLASH_ATTENTION_FORCE_BUILD=TRUE {_BUILD} --force-reinstall --no-deps --no-cache-dir",
    sizes=((2, 40, 32), (2, 300, 64)),  # the widths of heads that encoders have
)
