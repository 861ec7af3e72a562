"""Put our pooling and head on an encoder, and describe the parts of a network."""

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
from kinopoisk_ft.models.network import Layout, Network, find_parameters_in_graph, run_example_batch
from kinopoisk_ft.models.padding import (
    find_hugging_face_model,
    find_position_offset,
    match_tokenizer,
    pad_for_funnel,
)
from kinopoisk_ft.models.pooling import pool
from kinopoisk_ft.models.untrusted import check_contents

ENCODER, HEAD = "encoder", "head.safetensors"
# The error message of transformers quotes an unknown model type, so this text reaches the user.
UNREADABLE_MODEL_TYPE = (
    "kinopoisk_ft (transformers cannot read this classifier's pooling and head: use "
    "`python -m kinopoisk_ft.predict`, or read the encoder alone from the folder 'encoder')"
)


class PooledClassifier(nn.Module):
    """Classify with an encoder, pooling over its tokens, dropout and one linear layer.

    Args:
        pooling: one of POOLINGS.
        dropout: dropout before the linear layer; None uses the dropout of the config.
    """

    def __init__(
        self, encoder: nn.Module, num_labels: int, pooling: str, dropout: float | None = None
    ) -> None:
        super().__init__()
        self.encoder, self.pooling = encoder, pooling
        config: Any = encoder.config
        self.dropout = nn.Dropout(read_head_dropout(config) if dropout is None else dropout)
        # Longformer and LED were pretrained to classify with global attention at the first token.
        forward = inspect.signature(encoder.forward).parameters
        self.attends_globally = "global_attention_mask" in forward
        self.classifier = nn.Linear(config.hidden_size, num_labels)
        nn.init.normal_(self.classifier.weight, std=getattr(config, "initializer_range", 0.02))
        nn.init.zeros_(self.classifier.bias)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, **_: Any
    ) -> SequenceClassifierOutput:
        """Map ids and mask (batch, length) to logits (batch, classes)."""
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
        if self.attends_globally:
            inputs["global_attention_mask"] = torch.zeros_like(input_ids)
            inputs["global_attention_mask"][:, 0] = 1
        hidden = self.encoder(**inputs).last_hidden_state
        # Funnel returns more states than tokens; see `pad_for_funnel`.
        vectors = pool(hidden[:, : input_ids.shape[1]], attention_mask, self.pooling)
        return SequenceClassifierOutput(logits=self.classifier(self.dropout(vectors)))


class EncoderLayout(Layout):
    """Base class of the layouts of encoders, which have a config of transformers."""

    def backbone_output(self, hidden: Tensor) -> BaseModelOutput:
        """Wrap hidden states (batch, length, d_model) like the output of an encoder."""
        return BaseModelOutput(last_hidden_state=hidden)

    def config(self, source: str, card: Any) -> PreTrainedConfig:
        """Read the config of a folder or hub repository and set the card's class names in it."""
        config = load_config(source, card.revision)
        set_classes(config, card.class_names)
        return config

    def match_tokenizer(self, module: Any, tokenizer: Any, source: str) -> None:
        """Check embeddings and pad id against the tokenizer, and add Funnel's padding."""
        match_tokenizer(module, tokenizer, source, trained=True)
        pad_for_funnel(module, tokenizer.pad_token_id)


class HuggingFaceLayout(EncoderLayout):
    """Store a classifier of transformers in the layout of transformers."""

    name = "hf"
    peft_task = "SEQ_CLS"

    def save(self, module: Any, folder: Path) -> None:
        """Save config and weights as transformers does."""
        module.save_pretrained(folder)

    def load(self, source: str, card: Any, tokenizer: Any, trained: bool) -> nn.Module:
        """Load the classifier; only an adapter's base may have its weights in a pickle."""
        options = {"use_safetensors": True} if trained else {}
        module: nn.Module = AutoModelForSequenceClassification.from_pretrained(
            source, config=self.config(source, card), revision=card.revision,
            dtype=torch.float32, trust_remote_code=False, **options,
        )  # fmt: skip
        return module


class PooledLayout(EncoderLayout):
    """Store an encoder in the subfolder `encoder` and our head in head.safetensors."""

    name = "pooled"
    backbone = "encoder"

    def save(self, module: Any, folder: Path) -> None:
        """Save encoder and head, and a config.json that transformers refuses to load."""
        module.encoder.save_pretrained(folder / ENCODER)
        save_file(module.classifier.state_dict(), folder / HEAD)
        notice = json.dumps({"model_type": UNREADABLE_MODEL_TYPE}, indent=2)
        (folder / "config.json").write_text(notice + "\n", encoding="utf-8")

    def load(self, source: str, card: Any, tokenizer: Any, trained: bool) -> nn.Module:
        """Load encoder and head; format 1 stores the encoder in the folder itself."""
        head = Path(source) / HEAD
        if head.is_file() and (head.parent / ENCODER).is_dir():
            source = str(head.parent / ENCODER)
            check_contents(Path(source))
        options = {"use_safetensors": True} if trained else {}
        config = self.config(source, card)
        encoder, _ = load_encoder(source, config, revision=card.revision, **options)
        # transformers adds a random pooler, which our head does not read.
        encoder.pooler = None
        module = PooledClassifier(encoder, len(card.class_names), card.pooling)
        if trained:
            module.classifier.load_state_dict(load_file(head))
        return module


def read_head_dropout(config: PreTrainedConfig) -> float:
    """Read the dropout before the head from a config, as the classifiers of transformers do."""
    own = getattr(config, "classifier_dropout", None)
    return own if own is not None else getattr(config, "hidden_dropout_prob", 0.1)


def set_classes(config: PreTrainedConfig, class_names: Sequence[str]) -> None:
    """Set the class names in a config, so that `pipeline` of transformers returns them."""
    if class_names:
        config.num_labels = len(class_names)
        config.id2label = dict(enumerate(class_names))
        config.label2id = {name: i for i, name in enumerate(class_names)}


def build_pooled_network(
    encoder: nn.Module,
    config: PreTrainedConfig,
    num_labels: int,
    pooling: str,
    missing: Iterable[str],
    base: str | None,
    revision: str | None,
    dropout: float | None = None,
) -> Network:
    """Put our pooling and head on an encoder, and remove the encoder's own pooler.

    Args:
        missing: names of the encoder's weights that the checkpoint does not contain.
        base: hub name or absolute folder of the checkpoint; None after a random start.
        dropout: dropout before the head; None uses the dropout of the config.
    """
    if getattr(encoder, "pooler", None) is not None:
        setattr(encoder, "pooler", None)  # noqa: B010 - the type of a module's attribute forbids None
    module = PooledClassifier(encoder, num_labels, pooling, dropout)
    fresh = {f"encoder.{name}" for name in missing if not name.startswith("pooler.")}
    fresh |= {"classifier.weight", "classifier.bias"}
    heads = sorted({find_head_module(name) for name in fresh})
    return describe_encoder(module, config, PooledLayout(), heads, fresh, base, revision, pooling)


def freeze_unused_pooler(module: nn.Module) -> set[str]:
    """Freeze a pooler that the logits do not depend on, such as BigBird's.

    Returns:
        The names of its parameters.
    """
    named = {n: p for n, p in module.named_parameters() if "pooler" in n.split(".")}
    if not named:
        return set()
    with torch.enable_grad():
        used = find_parameters_in_graph(run_example_batch(module).logits)
    unused = {name for name, parameter in named.items() if parameter not in used}
    for name in unused:
        named[name].requires_grad_(False)
    return unused


def find_output_layer(module: nn.Module) -> str:
    """Find the name of the last linear layer of a classifier of transformers."""
    return [name for name, part in module.named_modules() if isinstance(part, nn.Linear)][-1]


def reset_layer(module: nn.Module, layer: str) -> set[str]:
    """Initialize a linear layer with random weights as transformers does.

    Returns:
        The names of its parameters.
    """
    linear: Any = module.get_submodule(layer)
    config: Any = module.config
    nn.init.normal_(linear.weight, std=getattr(config, "initializer_range", 0.02))
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)
    return {f"{layer}.{name}" for name, _ in linear.named_parameters()}


def find_head_module(parameter: str) -> str:
    """Find the module to train completely for a new parameter, such as `bert.pooler`."""
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
    """Describe a classifier or language model that contains a model of transformers.

    Args:
        head: dotted names of the modules that always train.
        fresh: names of the newly initialized parameters.
    """
    for part in module.modules():
        if "Sinusoidal" in type(part).__name__:
            # A formula fixes these embeddings, but loading a checkpoint makes them trainable.
            part.requires_grad_(False)
    return Network(
        module=module,
        layout=layout,
        layers=_find_layers(module, getattr(config.get_text_config(), "num_hidden_layers", 0)),
        embeddings=_find_embeddings(module),
        head=head,
        fresh=fresh,
        base=base,
        max_positions=_count_positions(module, config),
        pooling=pooling,
        revision=revision,
    )


def _find_layers(module: nn.Module, count: int) -> str:
    """Find the name of the list of `count` blocks; return "" if there is no such list.

    ALBERT runs one block several times, and Funnel has several lists, one for each length.
    """
    lists = {n: part for n, part in module.named_modules() if isinstance(part, nn.ModuleList)}
    if any(isinstance(child, nn.ModuleList) for part in lists.values() for child in part):
        return ""
    return next((name for name, part in lists.items() if len(part) == count), "")


def _find_embeddings(module: nn.Module) -> list[str]:
    """Find the module that embeds tokens and positions, or else the one that embeds tokens."""
    names = [n for n, _ in module.named_modules() if n.split(".")[-1] == "embeddings"][:1]
    if names:
        return names
    tokens = find_hugging_face_model(module).get_input_embeddings()
    return [name for name, part in module.named_modules(remove_duplicate=False) if part is tokens]


def _count_positions(module: nn.Module, config: Any) -> int | None:
    """Count the tokens that the model has positions for; None if there is no limit."""
    positions: int | None = getattr(config, "max_position_embeddings", None)
    if positions is None:
        return None
    return positions - find_position_offset(module) - 1
