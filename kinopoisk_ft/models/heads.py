"""Add this project's classification head to encoders, and save and load classifiers."""

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
from kinopoisk_ft.models.window_pooling import WindowPooling, flatten_windows

ENCODER, HEAD = "encoder", "head.safetensors"
# Prefix of the window pooling's weights in HEAD; the other weights are those of the classifier.
WINDOWS = "window_pooling."
# transformers quotes an unknown model type in its error message, so the user sees this text.
UNREADABLE_MODEL_TYPE = (
    "kinopoisk_ft (transformers cannot load the pooling and head of this classifier; use "
    "`python -m kinopoisk_ft.predict`, or load the encoder alone from the subfolder 'encoder')"
)


class PooledClassifier(nn.Module):
    """A text classifier with an encoder, pooling over the tokens, dropout and one linear layer.

    Args:
        pooling: "cls", "mean", "last" or "last_position"; see `kinopoisk_ft.models.pooling.pool`.
        dropout: dropout probability before the linear layer. If None, the config's value is used.
        window_pooling: see `WindowPooling`; None if reviews have no windows.
    """

    def __init__(
        self,
        encoder: nn.Module,
        num_labels: int,
        pooling: str,
        dropout: float | None = None,
        window_pooling: str | None = None,
    ) -> None:
        super().__init__()
        self.encoder, self.pooling = encoder, pooling
        config: Any = encoder.config
        self.dropout = nn.Dropout(read_head_dropout(config) if dropout is None else dropout)
        # Longformer and LED classify with global attention at the first token.
        forward = inspect.signature(encoder.forward).parameters
        self.attends_globally = "global_attention_mask" in forward
        self.window_pooling = (
            None if window_pooling is None else WindowPooling(window_pooling, config.hidden_size)
        )
        self.classifier = nn.Linear(config.hidden_size, num_labels)
        nn.init.normal_(self.classifier.weight, std=getattr(config, "initializer_range", 0.02))
        nn.init.zeros_(self.classifier.bias)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None, **_: Any
    ) -> SequenceClassifierOutput:
        """Compute logits (batch, classes) from token ids and attention mask.

        Ids and mask are (batch, length) or, with window pooling, also (batch, windows, length).
        """
        ids, mask = flatten_windows(input_ids, attention_mask)
        inputs = {"input_ids": ids, "attention_mask": mask}
        if self.attends_globally:
            first = torch.zeros_like(ids)
            first[:, 0] = 1
            inputs["global_attention_mask"] = first
        hidden = self.encoder(**inputs).last_hidden_state
        # For Funnel, there are more hidden states than tokens; see `pad_for_funnel`.
        vectors = pool(hidden[:, : ids.shape[1]], mask, self.pooling)
        if self.window_pooling is not None:
            vectors = self.window_pooling(vectors, attention_mask)
        return SequenceClassifierOutput(logits=self.classifier(self.dropout(vectors)))


class EncoderLayout(Layout):
    """Base class for saving and loading models with a transformers encoder."""

    def backbone_output(self, hidden: Tensor) -> BaseModelOutput:
        """Wrap hidden states (batch, length, d_model) in the output class of an encoder."""
        return BaseModelOutput(last_hidden_state=hidden)

    def config(self, source: str, card: Any) -> PreTrainedConfig:
        """Load the config of a model, with the class names from the card."""
        config = load_config(source, card.revision)
        set_classes(config, card.class_names)
        return config

    def match_tokenizer(self, module: Any, tokenizer: Any, source: str) -> None:
        """Set the model's pad id to the tokenizer's; check that every token id has an embedding."""
        match_tokenizer(module, tokenizer, source, trained=True)
        pad_for_funnel(module, tokenizer.pad_token_id)


class HuggingFaceLayout(EncoderLayout):
    """Saves and loads a transformers model in the format of transformers."""

    name = "hf"
    peft_task = "SEQ_CLS"

    def save(self, module: Any, folder: Path) -> None:
        """Save the config and weights with `save_pretrained`."""
        module.save_pretrained(folder)

    def load(self, source: str, card: Any, tokenizer: Any, trained: bool) -> nn.Module:
        """Load the classifier.

        Pickled weights are accepted only for the base model of an adapter.
        """
        options = {"use_safetensors": True} if trained else {}
        module: nn.Module = AutoModelForSequenceClassification.from_pretrained(
            source, config=self.config(source, card), revision=card.revision,
            dtype=torch.float32, trust_remote_code=False, **options,
        )  # fmt: skip
        return module


class PooledLayout(EncoderLayout):
    """Saves and loads an encoder with this project's classification head.

    The encoder is in the subfolder `encoder`, and the head is in head.safetensors.
    """

    name = "pooled"
    backbone = "encoder"

    def save(self, module: Any, folder: Path) -> None:
        """Save the encoder and the head.

        transformers cannot load this head and would initialize it randomly. The saved config.json
        prevents this, because it makes transformers refuse the folder.
        """
        module.encoder.save_pretrained(folder / ENCODER)
        pooling = module.window_pooling.state_dict() if module.window_pooling is not None else {}
        save_file(
            {
                **module.classifier.state_dict(),
                **{f"{WINDOWS}{name}": weight for name, weight in pooling.items()},
            },
            folder / HEAD,
        )
        notice = json.dumps({"model_type": UNREADABLE_MODEL_TYPE}, indent=2)
        (folder / "config.json").write_text(notice + "\n", encoding="utf-8")

    def load(self, source: str, card: Any, tokenizer: Any, trained: bool) -> nn.Module:
        """Load the encoder and, if `trained`, the head."""
        head = Path(source) / HEAD
        # In format 1 and in other checkpoints, the encoder is in the folder itself.
        if head.is_file() and (head.parent / ENCODER).is_dir():
            source = str(head.parent / ENCODER)
            check_contents(Path(source))
        options = {"use_safetensors": True} if trained else {}
        config = self.config(source, card)
        encoder, _ = load_encoder(source, config, revision=card.revision, **options)
        # transformers adds a randomly initialized pooler, which our head does not use.
        encoder.pooler = None
        module = PooledClassifier(
            encoder, len(card.class_names), card.pooling, window_pooling=card.window_pooling
        )
        if trained:
            weights = load_file(head)
            pooling = {n: weights.pop(n) for n in list(weights) if n.startswith(WINDOWS)}
            module.classifier.load_state_dict(weights)
            if module.window_pooling is not None:
                names = ((name.removeprefix(WINDOWS), weight) for name, weight in pooling.items())
                module.window_pooling.load_state_dict(dict(names))
        return module


def read_head_dropout(config: PreTrainedConfig) -> float:
    """Return the dropout probability for the head of a transformers classifier."""
    own = getattr(config, "classifier_dropout", None)
    return own if own is not None else getattr(config, "hidden_dropout_prob", 0.1)


def set_classes(config: PreTrainedConfig, class_names: Sequence[str]) -> None:
    """Set the class names in a config; transformers pipelines return these names."""
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
    window_pooling: str | None = None,
) -> Network:
    """Add this project's classification head to an encoder, and remove the encoder's pooler.

    Args:
        missing: names of the encoder's weights that are missing from the checkpoint.
        base: Hub id or absolute path of the checkpoint; None if all weights are random.
        revision: revision of the checkpoint on the Hub.
        dropout: dropout probability before the head. If None, the config's value is used.
        window_pooling: see `WindowPooling`; None if reviews have no windows.
    """
    if getattr(encoder, "pooler", None) is not None:
        setattr(encoder, "pooler", None)  # noqa: B010 - the type of a module's attribute forbids None
    module = PooledClassifier(encoder, num_labels, pooling, dropout, window_pooling)
    fresh = {f"encoder.{name}" for name in missing if not name.startswith("pooler.")}
    fresh |= {"classifier.weight", "classifier.bias"}
    fresh |= {name for name, _ in module.named_parameters() if name.startswith(WINDOWS)}
    heads = sorted({find_head_module(name) for name in fresh})
    return describe_encoder(
        module, config, PooledLayout(), heads, fresh, base, revision, pooling, window_pooling
    )


def freeze_unused_pooler(module: nn.Module) -> set[str]:
    """Freeze the pooler parameters that do not affect the logits, and return their names."""
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
    """Return the name of the last linear layer of a transformers classifier."""
    return [name for name, part in module.named_modules() if isinstance(part, nn.Linear)][-1]


def reset_layer(module: nn.Module, layer: str) -> set[str]:
    """Reinitialize a linear layer as transformers does; return the parameter names."""
    linear: Any = module.get_submodule(layer)
    config: Any = module.config
    nn.init.normal_(linear.weight, std=getattr(config, "initializer_range", 0.02))
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)
    return {f"{layer}.{name}" for name, _ in linear.named_parameters()}


def find_head_module(parameter: str) -> str:
    """Return the name of the head module that contains a parameter.

    For a parameter outside of head modules, return the name of the module that owns the parameter.
    """
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
    window_pooling: str | None = None,
) -> Network:
    """Create the `Network` for a transformers classifier or language model."""
    for part in module.modules():
        if "Sinusoidal" in type(part).__name__:
            # These embeddings are constants, but loading a checkpoint makes them trainable.
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
        window_pooling=window_pooling,
    )


def _find_layers(module: nn.Module, count: int) -> str:
    lists = {n: part for n, part in module.named_modules() if isinstance(part, nn.ModuleList)}
    # Funnel has a list of lists, with one list of blocks for each sequence length.
    if any(isinstance(child, nn.ModuleList) for part in lists.values() for child in part):
        return ""
    # ALBERT runs one block `count` times, so no list has this length.
    return next((name for name, part in lists.items() if len(part) == count), "")


def _find_embeddings(module: nn.Module) -> list[str]:
    names = [n for n, _ in module.named_modules() if n.split(".")[-1] == "embeddings"][:1]
    if names:
        return names
    tokens = find_hugging_face_model(module).get_input_embeddings()
    return [name for name, part in module.named_modules(remove_duplicate=False) if part is tokens]


def _count_positions(module: nn.Module, config: Any) -> int | None:
    positions: int | None = getattr(config, "max_position_embeddings", None)
    if positions is None:
        return None
    # RoBERTa does not use the positions up to its pad id.
    return positions - find_position_offset(module) - 1
