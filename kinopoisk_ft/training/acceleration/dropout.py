"""Our dropout in place of PyTorch's while a network trains on a CPU."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from kinopoisk_ft.errors import UserError
from kinopoisk_ft.ops.attention.op import attention
from kinopoisk_ft.ops.dropout.op import dropout

log = logging.getLogger(__name__)

# Names among the attention functions of `transformers`.
ATTENTION = "kinopoisk_ft"
KEEPS_ALL = "kinopoisk_ft_keeps_all"


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


def attention_that_keeps_all(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attend as SDPA does in `transformers`, and drop no probabilities."""
    out: tuple[Tensor, None] = sdpa_attention_forward(
        module, query, key, value, attention_mask, 0.0, **kwargs
    )
    return out


@contextmanager
def training_dropout(
    model: nn.Module, device: torch.device, attention_dropout: Literal["keep", "off"]
) -> Iterator[None]:
    """Put our dropout and attention into a model, and the model's own back in the end.

    On a CPU this reaches every `nn.Dropout`, those of adapters too, and the attention of Hugging
    Face encoders that run by SDPA. Names, parameters and results in evaluation are the same.
    Elsewhere nothing is done, but for attention_dropout="off", which holds on every device.

    Raises:
        UserError: attention_dropout="off", and the model's attention cannot be told so.
    """
    on_cpu = device.type == "cpu"
    slots = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent._modules.items()
        if on_cpu and type(child) is nn.Dropout
    ]
    encoders = find_sdpa_models(model)
    if attention_dropout == "off":
        _check_off(model, encoders)
    if not on_cpu and attention_dropout == "keep":
        encoders = []
    for key, function in ((ATTENTION, attention_forward), (KEEPS_ALL, attention_that_keeps_all)):
        AttentionInterface.register(key, function)
        AttentionMaskInterface.register(key, sdpa_mask)
    try:
        for parent, name, child in slots:
            parent._modules[name] = Dropout(child.p).train(child.training)
        for part in encoders:
            part.set_attn_implementation(ATTENTION if attention_dropout == "keep" else KEEPS_ALL)
        log.debug("our dropout in %d modules", len(slots))
        yield
    finally:
        for parent, name, child in slots:
            mode = parent.get_submodule(name).training
            parent._modules[name] = child.train(mode)
        for part in encoders:
            part.set_attn_implementation("sdpa")


def find_sdpa_models(model: nn.Module, *ways: str) -> list[Any]:
    """Return the Hugging Face models in a model that attend by SDPA and can be told another way.

    `ways`: names of attention functions that are taken for SDPA as well.
    """
    return [
        part
        for part in model.modules()
        if isinstance(part, PreTrainedModel)
        and part.config._attn_implementation in ("sdpa", *ways)
        and part._can_set_attn_implementation()
    ]


def _check_off(model: nn.Module, encoders: list[Any]) -> None:
    """Raise where attention drops and would go on doing so; say where there is none."""
    if encoders:
        log.info("attention drops no probabilities while training: trainer.attention_dropout=off")
        return
    if any(isinstance(part, PreTrainedModel) for part in model.modules()):
        raise UserError(
            "this model's attention is its own: its dropout cannot be switched off from outside",
            where="trainer.attention_dropout",
            fix="use trainer.attention_dropout=keep",
        )
    log.info("trainer.attention_dropout=off changes nothing: the model has no attention")
