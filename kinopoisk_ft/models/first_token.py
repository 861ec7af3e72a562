"""Run the last block of an encoder only for the first token, if the head reads no other token.

Keys and values are still computed for all tokens. The query, attention output and feed-forward
layer are computed only for the first token. Per token, a BERT block costs as much as 12 products
with a d_model x d_model matrix. Keys and values are 2 of them, so about a sixth of the
multiplications remain. Logits and gradients do not change.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from kinopoisk_ft.models.inspection import TOLERANCE, run_example_batch
from kinopoisk_ft.models.network import Network, list_blocks

log = logging.getLogger(__name__)


class FirstTokenAttention(nn.Module):
    """BERT attention for the first token only, with BERT's parameter names."""

    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.self, self.output = attention.self, attention.output

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Any = None,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        """Compute the attention output of the first token, (batch, 1, d_model)."""
        core: Any = self.self
        first = hidden_states[:, :1]
        # The query has the shape (batch, heads, 1, head_dim); key and value have
        # (batch, heads, length, head_dim).
        query, key, value = (
            layer(x).unflatten(-1, (-1, core.attention_head_size)).transpose(1, 2)
            for layer, x in ((core.query, first), (core.key, hidden_states),
                             (core.value, hidden_states))
        )  # fmt: skip
        # This cache prepends the keys and values of the virtual tokens of prefix tuning.
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, core.layer_idx)
        # From the mask (batch, heads or 1, queries, keys), only the first query is needed.
        # Without padding, the mask is None. For flash-attn, it lists the real tokens instead.
        if isinstance(attention_mask, Tensor):
            attention_mask = attention_mask[:, :, :1]
        # Look up the function in each call, because training temporarily replaces it.
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(
            core.config._attn_implementation, sdpa_attention_forward
        )
        dropout = core.dropout.p if self.training else 0.0
        out = attend(
            core, query, key, value, attention_mask,
            dropout=dropout, scaling=core.scaling, **kwargs,
        )[0]  # fmt: skip
        # The attention output has the shape (batch, 1, heads, head_dim).
        # The residual connection in `output` also needs only the first token.
        return self.output(out.flatten(2), first), None


def shorten_last_block(network: Network) -> Network:
    """Limit the last block to the first token, if the head reads only this token."""
    # Some heads of transformers also read other tokens. The comparison of logits finds them.
    if network.layers and network.pooling in ("pooler", "cls"):
        limit_to_first_token(network.module, list_blocks(network)[-1])
    return network


def limit_to_first_token(module: nn.Module, block: nn.Module) -> bool:
    """Make the last block compute only the first token, if this does not change the logits.

    Args:
        module: classifier that is called with input_ids and attention_mask.
        block: the last block of the module, modified in place.

    Returns:
        Whether the block was modified.
    """
    attention: Any = getattr(block, "attention", None)
    core = getattr(attention, "self", None)
    # RoFormer, Longformer and BigBird compute attention differently and have no `scaling`.
    if not all(hasattr(core, name) for name in ("query", "key", "value", "scaling")):
        return False
    expected = _compute_logits(module)
    # A new module is in training mode, whatever the mode of the old one.
    block.attention = FirstTokenAttention(attention).train(attention.training)
    # Blocks of other architectures raise various errors. They keep their own attention.
    try:
        logits = _compute_logits(module)
        same = bool((logits - expected).abs().max() <= TOLERANCE * expected.abs().max())
    except (RuntimeError, ValueError, TypeError, AttributeError) as error:
        log.debug("the last block cannot compute only the first token: %s", error)
        same = False
    if same:
        log.debug("the last block computes only the first token, because the head reads no other")
    else:
        block.attention = attention
    return same


def _compute_logits(module: nn.Module) -> Tensor:
    with torch.no_grad():
        logits: Tensor = run_example_batch(module).logits
    return logits
