"""Attention over real tokens alone, on a GPU where flash-attn is there and passes its self-test."""

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
from kinopoisk_ft.training.acceleration.dropout import KEEPS_ALL, find_sdpa_models
from kinopoisk_ft.training.precision import DTYPES, Precision

log = logging.getLogger(__name__)

# Among the attention functions of `transformers`.
UNPADDED = "kinopoisk_ft_unpadded"
UNPADDED_KEEPS_ALL = "kinopoisk_ft_unpadded_keeps_all"
INSTEAD = {"sdpa": UNPADDED, KEEPS_ALL: UNPADDED_KEEPS_ALL}


def mask_forward(*, mask_function: Any, attention_mask: Tensor | None, **kwargs: Any) -> Any:
    """Return where real tokens are, once for all layers; SDPA's mask where more is masked."""
    if attention_mask is None:
        return None
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
    """Attend among real tokens (batch, heads, length, width), in half precision; else by SDPA."""
    if not isinstance(attention_mask, RealTokens):
        out: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling, **kwargs
        )
        return out
    given, dtype = query.dtype, query.dtype
    if given == torch.float32:  # what an adapter or a norm left so under autocast
        dtype = torch.get_autocast_dtype(query.device.type)
    q, k, v = (x.to(dtype) for x in (query, key, value))
    return attention_unpadded(q, k, v, attention_mask, dropout, scaling).to(given), None


def attention_that_keeps_all(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | RealTokens | None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attend among real tokens, and drop no probabilities."""
    return attention_forward(module, query, key, value, attention_mask, 0.0, **kwargs)


@contextmanager
def unpadded_attention(model: nn.Module, precision: Precision) -> Iterator[None]:
    """Let Hugging Face encoders that run by SDPA attend among real tokens, SDPA again in the end.

    Those that `training_dropout` has told to drop nothing drop nothing here either.
    Nothing is done elsewhere than on CUDA in half precision, nor without a working flash-attn.
    """
    wanted = precision.device.type == "cuda" and DTYPES[precision.kind].itemsize == 2
    parts = find_sdpa_models(model, KEEPS_ALL) if wanted else []
    if parts and (wrong := gpu_package.find_problem(PACKAGE, precision.device)):
        log.info("attention runs by PyTorch's kernels over padded batches: %s", wrong)
        parts = []
    before = [part.config._attn_implementation for part in parts]
    ways = ((UNPADDED, attention_forward), (UNPADDED_KEEPS_ALL, attention_that_keeps_all))
    for key, function in ways:
        AttentionInterface.register(key, function)
        AttentionMaskInterface.register(key, mask_forward)
    try:
        for part, way in zip(parts, before, strict=True):
            part.set_attn_implementation(INSTEAD[way])
            log.info("attention runs by flash-attn over real tokens alone")
        yield
    finally:
        for part, way in zip(parts, before, strict=True):
            part.set_attn_implementation(way)
