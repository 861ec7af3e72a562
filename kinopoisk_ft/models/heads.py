"""An encoder with our pooling and head, and the description of a network's parts."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, PreTrainedConfig
from transformers.modeling_outputs import BaseModelOutput, SequenceClassifierOutput

from kinopoisk_ft.models.checkpoints import load_config, load_encoder
from kinopoisk_ft.models.network import Layout, Network, parameters_behind, run_once
from kinopoisk_ft.models.padding import (
    hugging_face_model,
    lengthen,
    match_tokenizer,
    position_offset,
)
from kinopoisk_ft.models.pooling import pool
from kinopoisk_ft.models.untrusted import check_contents

ENCODER, HEAD = "encoder", "head.safetensors"
# Error messages of transformers quote an unknown model type, so that this one explains itself.
FOREIGN_TYPE = (
    "kinopoisk_ft (transformers cannot read this classifier's pooling and head: use "
    "`python -m kinopoisk_ft.predict`, or read the encoder alone from the folder 'encoder')"
)


class PooledClassifier(nn.Module):
    """An encoder, pooling over its tokens, dropout and one linear layer.

    Args:
        dropout: before the linear layer; None for the config's.
    """

    def __init__(
        self, encoder: nn.Module, num_labels: int, pooling: str, dropout: float | None = None
    ) -> None:
        super().__init__()
        self.encoder, self.pooling = encoder, pooling
        config: Any = encoder.config
        self.dropout = nn.Dropout(head_dropout(config) if dropout is None else dropout)
        # Longformer and LED were trained to classify with global attention at the first token.
        forward = inspect.signature(encoder.forward).parameters
        self.attends_globally = "global_attention_mask" in forward
        self.classifier = nn.Linear(config.hidden_size, num_labels)
        nn.init.normal_(self.classifier.weight, std=getattr(config, "initializer_range", 0.02))
        nn.init.zeros_(self.classifier.bias)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, **_: Any
    ) -> SequenceClassifierOutput:
        """Map ids and mask (batch, length) to logits (batch, classes)."""
        more: dict[str, Tensor] = {}
        if self.attends_globally:
            more["global_attention_mask"] = torch.zeros_like(input_ids)
            more["global_attention_mask"][:, 0] = 1
        hidden = self.encoder(
            input_ids=input_ids, attention_mask=attention_mask, **more
        ).last_hidden_state[:, : input_ids.shape[1]]  # Funnel's is longer: see `lengthen`.
        vectors = pool(hidden, attention_mask, self.pooling)
        return SequenceClassifierOutput(logits=self.classifier(self.dropout(vectors)))


class EncoderLayout(Layout):
    """What the folders of encoders have in common: a config of transformers with our classes."""

    def backbone_output(self, hidden: Tensor) -> BaseModelOutput:
        """Return hidden states as an encoder of transformers does."""
        return BaseModelOutput(last_hidden_state=hidden)

    def config(self, source: str, card: Any) -> PreTrainedConfig:
        """Read the config of a folder or hub repository and write the card's classes into it."""
        config = load_config(source, card.revision)
        set_classes(config, card.class_names)
        return config

    def match_tokenizer(self, module: Any, tokenizer: Any, source: str) -> None:
        """Compare embeddings and pad id with the tokenizer, and lengthen short positions."""
        match_tokenizer(module, tokenizer, source, trained=True)
        lengthen(module, tokenizer.pad_token_id)


class HuggingFaceLayout(EncoderLayout):
    """A classifier of transformers, in its own layout."""

    name = "hf"
    peft_task = "SEQ_CLS"

    def save(self, module: Any, folder: Path) -> None:
        """Write config and weights as transformers does."""
        module.save_pretrained(folder)

    def load(self, source: str, card: Any, tokenizer: Any, trained: bool) -> nn.Module:
        """Load the classifier; a base of an adapter may have its weights in a pickle."""
        options = {"use_safetensors": True} if trained else {}
        module: nn.Module = AutoModelForSequenceClassification.from_pretrained(
            source, config=self.config(source, card), revision=card.revision,
            dtype=torch.float32, trust_remote_code=False, **options,
        )  # fmt: skip
        return module


class PooledLayout(EncoderLayout):
    """An encoder in its own layout in a folder of its own, and our head beside it."""

    name = "pooled"
    backbone = "encoder"

    def save(self, module: Any, folder: Path) -> None:
        """Write encoder and head, and a config.json that transformers refuses."""
        module.encoder.save_pretrained(folder / ENCODER)
        save_file(module.classifier.state_dict(), folder / HEAD)
        notice = json.dumps({"model_type": FOREIGN_TYPE}, indent=2)
        (folder / "config.json").write_text(notice + "\n", encoding="utf-8")

    def load(self, source: str, card: Any, tokenizer: Any, trained: bool) -> nn.Module:
        """Load encoder and head; in format 1 the encoder lies in the folder itself."""
        head = Path(source) / HEAD
        if head.is_file() and (head.parent / ENCODER).is_dir():
            source = str(head.parent / ENCODER)
            check_contents(Path(source))
        options = {"use_safetensors": True} if trained else {}
        config = self.config(source, card)
        encoder, _ = load_encoder(source, config, revision=card.revision, **options)
        encoder.pooler = None
        module = PooledClassifier(encoder, len(card.class_names), card.pooling)
        if trained:
            module.classifier.load_state_dict(load_file(head))
        return module


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
    missing: Iterable[str],
    base: str | None,
    revision: str | None,
    dropout: float | None = None,
) -> Network:
    """Return an encoder with our head; a pooler that nothing reads is taken out."""
    if getattr(encoder, "pooler", None) is not None:
        setattr(encoder, "pooler", None)  # noqa: B010 - the type of a module's attribute forbids None
    module = PooledClassifier(encoder, num_labels, pooling, dropout)
    fresh = {f"encoder.{name}" for name in missing if not name.startswith("pooler.")}
    fresh |= {"classifier.weight", "classifier.bias"}
    heads = sorted({head_module(name) for name in fresh})
    return describe_encoder(module, config, PooledLayout(), heads, fresh, base, revision, pooling)


def freeze_unused_pooler(module: nn.Module) -> set[str]:
    """Freeze a pooler that the logits do not depend on, as BigBird's; return its weights' names."""
    named = {n: p for n, p in module.named_parameters() if "pooler" in n.split(".")}
    if not named:
        return set()
    with torch.enable_grad():
        behind = parameters_behind(run_once(module).logits)
    unused = {name for name, parameter in named.items() if parameter not in behind}
    for name in unused:
        named[name].requires_grad_(False)
    return unused


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
    layout: Layout,
    head: list[str],
    fresh: set[str],
    base: str | None,
    revision: str | None,
    pooling: str,
) -> Network:
    """Return the description of a classifier or language model around one of Hugging Face's."""
    for part in module.modules():
        if "Sinusoidal" in type(part).__name__:
            # Fixed by a formula. Loading a checkpoint makes them trainable.
            part.requires_grad_(False)
    return Network(
        module=module,
        layout=layout,
        layers=_layers(module, getattr(config.get_text_config(), "num_hidden_layers", 0)),
        embeddings=_embeddings(module),
        head=head,
        fresh=fresh,
        base=base,
        max_positions=_positions(module, config),
        pooling=pooling,
        revision=revision,
    )


def _layers(module: nn.Module, count: int) -> str:
    """Return the name of the list of `count` blocks; "" if there is none, or lists within a list.

    ALBERT runs one block many times; Funnel's blocks lie in several lists, one for each length.
    """
    lists = {n: part for n, part in module.named_modules() if isinstance(part, nn.ModuleList)}
    if any(isinstance(child, nn.ModuleList) for part in lists.values() for child in part):
        return ""
    return next((name for name, part in lists.items() if len(part) == count), "")


def _embeddings(module: nn.Module) -> list[str]:
    """Return the name of the module that embeds tokens, with their positions where it can."""
    names = [n for n, _ in module.named_modules() if n.split(".")[-1] == "embeddings"][:1]
    if names:
        return names
    tokens = hugging_face_model(module).get_input_embeddings()
    return [name for name, part in module.named_modules(remove_duplicate=False) if part is tokens]


def _positions(module: nn.Module, config: Any) -> int | None:
    """Return how many tokens the positions reach; None if there is no limit."""
    positions: int | None = getattr(config, "max_position_embeddings", None)
    if positions is None:
        return None
    return positions - position_offset(module) - 1
