"""Our dropout in place of PyTorch's while a network trains on a CPU."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from kinopoisk_ft.ops.attention import attention
from kinopoisk_ft.ops.dropout import dropout

log = logging.getLogger(__name__)

ATTENTION = "kinopoisk_ft"  # its name among the attention functions of `transformers`


class Dropout(nn.Dropout):
    """`nn.Dropout` by `ops.dropout`."""

    def forward(self, input: Tensor) -> Tensor:
        """Drop elements of a tensor of any shape while training."""
        return dropout(input, self.p) if self.training else input


def attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attend as SDPA does in `transformers`, with our kernel where probabilities are dropped.

    What only a decoder or a cache asks for stays with SDPA, and so does a mask that learns.
    """
    causal = is_causal if is_causal is not None else getattr(module, "is_causal", True)
    special = any(kwargs.get(name) is not None for name in ("position_bias", "cache", "softcap"))
    grouped = key.shape[1] != query.shape[1]
    learns = attention_mask is not None and attention_mask.requires_grad
    if dropout == 0 or special or grouped or learns or (causal and attention_mask is None):
        out: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling, is_causal, **kwargs
        )
        return out
    attended = attention(query, key, value, attention_mask, dropout, scaling)
    return attended.transpose(1, 2).contiguous(), None


@contextmanager
def fast_dropout(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Put our dropout and attention into a model, and the model's own back in the end.

    Reaches every `nn.Dropout`, those of adapters too, and the attention of Hugging Face encoders
    that run by SDPA. Names, parameters and results in evaluation are the same; on other devices
    than a CPU nothing is done.
    """
    if device.type != "cpu":
        yield
        return
    AttentionInterface.register(ATTENTION, attention_forward)
    AttentionMaskInterface.register(ATTENTION, sdpa_mask)
    slots = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent._modules.items()
        if type(child) is nn.Dropout
    ]
    encoders = [
        part
        for part in model.modules()
        if isinstance(part, PreTrainedModel)
        and part.config._attn_implementation == "sdpa"
        and part._can_set_attn_implementation()
    ]
    try:
        for parent, name, child in slots:
            parent._modules[name] = Dropout(child.p).train(child.training)
        for part in encoders:
            part.set_attn_implementation(ATTENTION)
        log.debug("our dropout in %d modules", len(slots))
        yield
    finally:
        for parent, name, child in slots:
            mode = parent.get_submodule(name).training
            parent._modules[name] = child.train(mode)
        for part in encoders:
            part.set_attn_implementation("sdpa")
