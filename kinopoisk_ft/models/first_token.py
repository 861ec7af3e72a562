"""The last block of an encoder run for the first token alone, where the head reads no other.

Keys and values still come from all tokens. What the other tokens would ask, and all that follows
their attention, reaches neither logits nor gradients: ten twelfths of the products of that block.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from kinopoisk_ft.models.network import TOLERANCE, Network, blocks_of, run_once

log = logging.getLogger(__name__)


class FirstTokenAttention(nn.Module):
    """The attention of a block of the BERT family, whose parts it takes over under their names."""

    def __init__(self, whole: Any) -> None:
        super().__init__()
        self.self, self.output = whole.self, whole.output

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Any = None,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        """Map hidden states (batch, length, d_model) to those of the first token: length 1."""
        core: Any = self.self
        first = hidden_states[:, :1]
        query, key, value = (
            layer(x).unflatten(-1, (-1, core.attention_head_size)).transpose(1, 2)
            for layer, x in ((core.query, first), (core.key, hidden_states),
                             (core.value, hidden_states))
        )  # fmt: skip
        if past_key_values is not None:  # of virtual tokens, which an adapter puts in front
            key, value = past_key_values.update(key, value, core.layer_idx)
        if isinstance(attention_mask, Tensor):  # (batch, heads or 1, queries, keys)
            attention_mask = attention_mask[:, :, :1]
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(
            core.config._attn_implementation, sdpa_attention_forward
        )
        dropout = core.dropout.p if self.training else 0.0
        out = attend(
            core, query, key, value, attention_mask,
            dropout=dropout, scaling=core.scaling, **kwargs,
        )[0]  # fmt: skip
        return self.output(out.flatten(2), first), None


def shorten(network: Network) -> Network:
    """Shorten the last block of a classifier that pools the first token; returns the network."""
    if network.layers and network.pooling in ("pooler", "cls"):
        read_first_token(network.module, blocks_of(network)[-1])
    return network


def read_first_token(module: nn.Module, block: nn.Module) -> bool:
    """Let an encoder's last block run for the first token, if that gives the same logits.

    Args:
        module: a classifier of input_ids and attention_mask, with its whole last `block`.

    Returns:
        Whether the block is shortened; if not, it is what it was.
    """
    attention: Any = getattr(block, "attention", None)
    core = getattr(attention, "self", None)
    if not all(hasattr(core, name) for name in ("query", "key", "value", "scaling")):
        return False
    expected = _logits(module)
    block.attention = FirstTokenAttention(attention).train(attention.training)
    try:
        found = _logits(module)
        same = bool((found - expected).abs().max() <= TOLERANCE * expected.abs().max())
    except (RuntimeError, ValueError, TypeError, AttributeError) as error:
        log.debug("the last block cannot run for one token: %s", error)
        same = False
    if same:
        log.info("the last block runs for the first token, the only one that the head reads")
    else:
        block.attention = attention
    return same


def _logits(module: nn.Module) -> Tensor:
    with torch.no_grad():
        logits: Tensor = run_once(module).logits
    return logits
