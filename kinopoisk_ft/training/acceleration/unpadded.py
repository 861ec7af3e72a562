"""Compute attention without padding on a GPU, with the package flash-attn."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import (
    AttentionMaskInterface,
    bidirectional_mask_function,
    sdpa_mask,
)

from kinopoisk_ft.ops import gpu_package
from kinopoisk_ft.ops.attention.cuda import PACKAGE, RealTokens, attention_unpadded
from kinopoisk_ft.training.acceleration.dropout import NO_DROPOUT, find_sdpa_models, ignore_dropout
from kinopoisk_ft.training.precision import DTYPES, Precision

log = logging.getLogger(__name__)

# Names under which the attention functions are registered in `transformers`.
UNPADDED = "kinopoisk_ft_unpadded"
UNPADDED_NO_DROPOUT = "kinopoisk_ft_unpadded_no_dropout"
UNPADDED_NAMES = {"sdpa": UNPADDED, NO_DROPOUT: UNPADDED_NO_DROPOUT}


def mask_forward(*, mask_function: Any, attention_mask: Tensor | None, **kwargs: Any) -> Any:
    """Convert a padding mask to the mask that `attention_forward` needs.

    Returns:
        `RealTokens` if attention is bidirectional, otherwise a mask for SDPA. None if there is no
        padding mask.
    """
    # Without padding there is nothing to skip, so SDPA is used.
    if attention_mask is None:
        return None
    # Models with other masks, for example causal ones, keep SDPA.
    if mask_function is bidirectional_mask_function:
        return RealTokens.from_mask(attention_mask)
    return sdpa_mask(mask_function=mask_function, attention_mask=attention_mask, **kwargs)


def attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | RealTokens | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Compute attention: with flash-attn if the mask is `RealTokens`, otherwise with SDPA.

    Args:
        query, key, value: (batch, heads, length, head_dim).
        attention_mask: result of `mask_forward`.
    """
    if not isinstance(attention_mask, RealTokens):
        out: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling, **kwargs
        )
        return out
    given, dtype = query.dtype, query.dtype
    # Adapters and norms may return fp32 under autocast, but flash-attn needs half precision.
    if given == torch.float32:
        dtype = torch.get_autocast_dtype(query.device.type)
    q, k, v = (x.to(dtype) for x in (query, key, value))
    # (batch, length, heads, head_dim), as transformers expects.
    return attention_unpadded(q, k, v, attention_mask, dropout, scaling).to(given), None


@contextmanager
def use_unpadded_attention(model: nn.Module, precision: Precision) -> Iterator[None]:
    """Replace SDPA attention with unpadded attention during a `with` block.

    Nothing changes if the device is not CUDA, if the precision is fp32, or if flash-attn is missing
    or fails its self-test. Attention dropout that `replace_dropout` has switched off stays off.
    """
    # flash-attn supports only fp16 and bf16, which have 2 bytes per number.
    wanted = precision.device.type == "cuda" and DTYPES[precision.kind].itemsize == 2
    parts = find_sdpa_models(model, NO_DROPOUT) if wanted else []
    if parts and (problem := gpu_package.find_problem(PACKAGE, precision.device)):
        log.debug("attention uses PyTorch's kernels on padded batches, because %s", problem)
        parts = []
    # "sdpa", or NO_DROPOUT inside a block of `replace_dropout` with attention_dropout="off".
    before = [part.config._attn_implementation for part in parts]
    AttentionInterface.register(UNPADDED, attention_forward)
    AttentionInterface.register(UNPADDED_NO_DROPOUT, ignore_dropout(attention_forward))
    for key in (UNPADDED, UNPADDED_NO_DROPOUT):
        AttentionMaskInterface.register(key, mask_forward)
    try:
        for part, name in zip(parts, before, strict=True):
            part.set_attn_implementation(UNPADDED_NAMES[name])
            log.debug("attention uses flash-attn without padding")
        yield
    finally:
        for part, name in zip(parts, before, strict=True):
            part.set_attn_implementation(name)
