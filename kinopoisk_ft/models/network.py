"""What the rest of the project needs to know of a network, whatever its kind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from torch import nn

Kind = Literal["hf", "pooled", "mamba"]


@dataclass
class Network:
    """A module with `forward(input_ids, attention_mask).logits` and the names of its parts.

    Args:
        kind: "hf" (Hugging Face's own classifier), "pooled" (encoder and our head) or "mamba".
        layers: dotted name of the ModuleList of blocks, first block first; "" if the architecture
            has no such list, as ALBERT, whose blocks share weights.
        embeddings: dotted names of the modules that give the first block its hidden states.
        head: last parts of the names of modules that always train.
        fresh: names of parameters with random values that no checkpoint gave.
        base: hub name or absolute folder of the checkpoint; None after a random start.
        max_positions: tokens that the model can read; None where there is no limit.
        pooling: how a review's vector is taken from its tokens.
        no_adapter: module names that an adapter cannot sit on, with the reason.
    """

    module: nn.Module
    kind: Kind
    layers: str
    embeddings: list[str]
    head: list[str]
    fresh: set[str]
    base: str | None
    max_positions: int | None
    pooling: str
    revision: str | None = None
    no_adapter: dict[str, str] = field(default_factory=dict)

    @property
    def body(self) -> str:
        """Return the name of the module that holds everything below the head."""
        return (self.layers or self.embeddings[0]).split(".")[0]


class Recipe(Protocol):
    """What a file of the group `model` builds."""

    lr: float

    def load_tokenizer(self, texts: Sequence[str]) -> Any:
        """Return the tokenizer; `texts`, the train split's, serve models that train theirs."""
        ...

    def build(self, class_names: Sequence[str], tokenizer: Any) -> Network:
        """Return a classifier in fp32."""
        ...

    def build_lm(self, tokenizer: Any) -> Network:
        """Return the same backbone with a language-model head, for pretraining."""
        ...
