"""Replace dropout and attention with faster kernels during training on a CPU."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
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

# Names under which the attention functions are registered in `transformers`.
ATTENTION = "kinopoisk_ft"
NO_DROPOUT = "kinopoisk_ft_no_dropout"


class Dropout(nn.Dropout):
    """A dropout module that uses the kernel in `kinopoisk_ft.ops.dropout`."""

    def forward(self, input: Tensor) -> Tensor:
        """Apply dropout to a tensor of any shape; in evaluation mode, return the tensor."""
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
    """Compute attention with the kernel in `kinopoisk_ft.ops.attention` or with PyTorch's SDPA.

    SDPA is used if dropout is 0 or if the kernel does not support the inputs.
    """
    # The same rule as in `sdpa_attention_forward` of transformers.
    causal = is_causal if is_causal is not None else getattr(module, "is_causal", True)
    # The kernel has no such arguments. `sdpa_attention_forward` applies or refuses them.
    special = any(kwargs.get(name) is not None for name in ("position_bias", "cache", "softcap"))
    # In grouped-query attention, several query heads share a key head (Ainslie et al., 2023).
    grouped = key.shape[1] != query.shape[1]
    # A mask that contains a learned position bias needs a gradient, but the kernel computes none.
    learns = attention_mask is not None and attention_mask.requires_grad
    # If a causal model passes no mask, SDPA masks later keys itself, which the kernel cannot do.
    if dropout == 0 or special or grouped or learns or (causal and attention_mask is None):
        out: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling, is_causal, **kwargs
        )
        return out
    attended = attention(query, key, value, attention_mask, dropout, scaling)
    # (batch, heads, length, head_dim) becomes (batch, length, heads, head_dim).
    return attended.transpose(1, 2).contiguous(), None


def ignore_dropout(attend: Callable[..., Any]) -> Callable[..., Any]:
    """Return an attention function for `transformers` that calls `attend` without dropout."""

    def attend_without_dropout(*inputs: Any, dropout: float = 0.0, **kwargs: Any) -> Any:
        return attend(*inputs, **kwargs)

    return attend_without_dropout


@contextmanager
def replace_dropout(
    model: nn.Module, device: torch.device, attention_dropout: Literal["keep", "off"]
) -> Iterator[None]:
    """Replace the dropout and the attention of a model during a `with` block.

    On a CPU, this project's kernels replace `nn.Dropout` and the SDPA attention. If
    `attention_dropout` is "off", SDPA without dropout replaces the SDPA attention on every device.
    Parameter names and evaluation results do not change.

    Raises:
        UserError: `attention_dropout="off"`, but the model's attention cannot be replaced.
    """
    on_cpu = device.type == "cpu"
    # Subclasses of nn.Dropout are not replaced, because they may compute something else.
    dropouts = [part for part in model.modules() if on_cpu and type(part) is nn.Dropout]
    encoders = find_sdpa_models(model)
    if attention_dropout == "off":
        _check_attention_dropout_off(model, encoders)
    if not on_cpu and attention_dropout == "keep":
        encoders = []
    AttentionInterface.register(ATTENTION, attention_forward)
    AttentionInterface.register(NO_DROPOUT, ignore_dropout(sdpa_attention_forward))
    # For an attention function without an entry here, transformers creates no mask.
    for key in (ATTENTION, NO_DROPOUT):
        AttentionMaskInterface.register(key, sdpa_mask)
    try:
        for part in dropouts:
            # A new class, instead of a new module, keeps the mode and the hooks of the module.
            part.__class__ = Dropout
        for part in encoders:
            part.set_attn_implementation(ATTENTION if attention_dropout == "keep" else NO_DROPOUT)
        log.debug("replaced dropout in %d modules", len(dropouts))
        yield
    finally:
        for part in dropouts:
            part.__class__ = nn.Dropout
        # `find_sdpa_models` returned only models that used SDPA.
        for part in encoders:
            part.set_attn_implementation("sdpa")


def find_sdpa_models(model: nn.Module, *names: str) -> list[Any]:
    """Return the Hugging Face models inside `model` whose SDPA attention can be replaced.

    Args:
        names: attention implementations that may be replaced in addition to "sdpa".
    """
    return [
        part
        for part in model.modules()
        if isinstance(part, PreTrainedModel)
        and part.config._attn_implementation in ("sdpa", *names)
        # False if the attention of the model does not use the AttentionInterface of transformers.
        and part._can_set_attn_implementation()
    ]


def _check_attention_dropout_off(model: nn.Module, encoders: list[Any]) -> None:
    if encoders:
        log.info("attention dropout is switched off (trainer.attention_dropout=off)")
        return
    if any(isinstance(part, PreTrainedModel) for part in model.modules()):
        raise UserError(
            "the model has no SDPA attention, so its attention dropout cannot be switched off",
            where="trainer.attention_dropout",
            fix="use trainer.attention_dropout=keep",
        )
    log.info("trainer.attention_dropout=off has no effect, because the model has no attention")
