"""An encoder with our pooling and head, and what a network says of its parts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.modeling_outputs import SequenceClassifierOutput

from kinopoisk_ft.errors import UserError
from kinopoisk_ft.models.network import Kind, Network
from kinopoisk_ft.models.pooling import pool


class PooledClassifier(nn.Module):
    """An encoder, pooling over its tokens, dropout and one linear layer."""

    def __init__(self, encoder: nn.Module, num_labels: int, pooling: str) -> None:
        super().__init__()
        self.encoder, self.pooling = encoder, pooling
        config: Any = encoder.config
        self.dropout = nn.Dropout(head_dropout(config))
        self.classifier = nn.Linear(config.hidden_size, num_labels)
        nn.init.normal_(self.classifier.weight, std=getattr(config, "initializer_range", 0.02))
        nn.init.zeros_(self.classifier.bias)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, **_: Any
    ) -> SequenceClassifierOutput:
        """Map ids and mask (batch, length) to logits (batch, classes)."""
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        vectors = pool(hidden, attention_mask, self.pooling)
        return SequenceClassifierOutput(logits=self.classifier(self.dropout(vectors)))


def head_dropout(config: PreTrainedConfig) -> float:
    """Return the dropout before the head as Hugging Face's classifiers take it from a config."""
    own = getattr(config, "classifier_dropout", None)
    return own if own is not None else getattr(config, "hidden_dropout_prob", 0.1)


def set_classes(config: PreTrainedConfig, class_names: Sequence[str]) -> None:
    """Write the class names into a config, so that `pipeline` answers with them."""
    if class_names:
        config.num_labels = len(class_names)
        config.id2label = dict(enumerate(class_names))
        config.label2id = {name: i for i, name in enumerate(class_names)}


def pooled_network(
    encoder: nn.Module,
    config: PreTrainedConfig,
    num_labels: int,
    pooling: str,
    missing: Sequence[str],
    base: str | None,
    revision: str | None,
) -> Network:
    """Return an encoder with our head; a pooler that nothing reads is taken out."""
    if getattr(encoder, "pooler", None) is not None:
        setattr(encoder, "pooler", None)  # noqa: B010 - the type of a module's attribute forbids None
    module = PooledClassifier(encoder, num_labels, pooling)
    fresh = {f"encoder.{name}" for name in missing if not name.startswith("pooler.")}
    fresh |= {"classifier.weight", "classifier.bias"}
    heads = sorted({head_module(name) for name in fresh})
    return describe_encoder(module, config, "pooled", heads, fresh, base, revision, pooling)


def output_layer(module: nn.Module) -> str:
    """Return the name of the last linear layer of one of Hugging Face's classifiers."""
    return [name for name, part in module.named_modules() if isinstance(part, nn.Linear)][-1]


def start_anew(module: nn.Module, layer: str) -> set[str]:
    """Give a layer random weights as Hugging Face does; return its parameters' names."""
    linear: Any = module.get_submodule(layer)
    config: Any = module.config
    nn.init.normal_(linear.weight, std=getattr(config, "initializer_range", 0.02))
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)
    return {f"{layer}.{name}" for name, _ in linear.named_parameters()}


def head_module(parameter: str) -> str:
    """Return the module to train whole for a fresh parameter: `classifier`, `bert.pooler`…"""
    parts = parameter.split(".")
    for name in ("classifier", "score", "pooler", "head"):
        if name in parts:
            return ".".join(parts[: parts.index(name) + 1])
    return ".".join(parts[:-1])


def describe_encoder(
    module: nn.Module,
    config: Any,
    kind: Kind,
    head: list[str],
    fresh: set[str],
    base: str | None,
    revision: str | None,
    pooling: str,
) -> Network:
    stacks = [
        name
        for name, part in module.named_modules()
        if isinstance(part, nn.ModuleList) and len(part) == config.num_hidden_layers
    ]
    if not stacks:
        raise UserError(
            f"a {config.model_type} model has no list of {config.num_hidden_layers} layers",
            where="model.name",
            fix="choose an encoder of the BERT family",
        )
    embeddings = [n for n, _ in module.named_modules() if n.split(".")[-1] == "embeddings"][:1]
    return Network(
        module=module,
        kind=kind,
        layers=stacks[0],
        embeddings=embeddings,
        head=head,
        fresh=fresh,
        base=base,
        max_positions=_positions(config),
        pooling=pooling,
        revision=revision,
    )


def _positions(config: Any) -> int | None:
    """Return how many tokens the positions reach; RoBERTa's start behind the pad id."""
    positions: int | None = getattr(config, "max_position_embeddings", None)
    behind_pad = config.model_type in ("roberta", "xlm-roberta", "camembert", "xlm-roberta-xl")
    if positions is not None and behind_pad:
        return positions - config.pad_token_id - 1
    return positions
