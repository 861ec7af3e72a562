"""Add this project's classification head to encoders, and save and load classifiers."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, PreTrainedConfig
from transformers.modeling_outputs import BaseModelOutput

from kinopoisk_ft.data.windows import Windows
from kinopoisk_ft.errors import UserError
from kinopoisk_ft.models.card import ENCODER
from kinopoisk_ft.models.checkpoints import load_config, load_encoder
from kinopoisk_ft.models.frozen_weights import DTYPES, store_in_bf16
from kinopoisk_ft.models.hf_classes import PooledClassifier, PooledForSequenceClassification
from kinopoisk_ft.models.hf_configs import PooledConfig, describe_classifier
from kinopoisk_ft.models.inspection import find_parameters_in_graph, run_example_batch
from kinopoisk_ft.models.network import Layout, Network, flatten_blocks
from kinopoisk_ft.models.padding import (
    find_hugging_face_model,
    find_position_offset,
    match_tokenizer,
    pad_for_funnel,
)
from kinopoisk_ft.models.untrusted import check_contents

HEAD, INDEX = "head.safetensors", "model.safetensors.index.json"
# Prefix of the encoder's weights; the other weights are in HEAD.
BODY = "encoder."


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
        """Give the model the tokenizer's pad id, and check that each token id has an embedding."""
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
        module, info = AutoModelForSequenceClassification.from_pretrained(
            source, config=self.config(source, card), revision=card.revision,
            dtype=DTYPES[card.dtype], trust_remote_code=False, output_loading_info=True,
            # The adapter replaces the output layer of its base model, which may have other classes.
            ignore_mismatched_sizes=not trained, **options,
        )  # fmt: skip
        check_sizes(info["mismatched_keys"], find_output_layer(module), source)
        if trained:
            check_complete(info["missing_keys"])
        if card.dtype == "bf16":
            store_in_bf16(module)
        return module


class PooledLayout(EncoderLayout):
    """Saves and loads an encoder with this project's classification head.

    The encoder is in the subfolder `encoder`, and the head is in head.safetensors. The file
    model.safetensors.index.json lists the weights of both, so that transformers loads them as one
    model.
    """

    name = "pooled"
    backbone = "encoder"
    divides_long_texts = True

    def save(self, module: Any, folder: Path) -> None:
        """Save the encoder and the head."""
        # If the weights had the names of the original checkpoint, transformers could not tell for
        # some architectures, such as GTE, which weights belong to the encoder.
        module.encoder.save_pretrained(folder / ENCODER, save_original_format=False)
        head = {name: w for name, w in module.state_dict().items() if not name.startswith(BODY)}
        # transformers reads only files with this metadata.
        save_file(head, folder / HEAD, metadata={"format": "pt"})
        files = [*sorted((folder / ENCODER).glob("*.safetensors")), folder / HEAD]
        index = {
            "metadata": {"total_size": sum(file.stat().st_size for file in files)},
            "weight_map": {
                name: file.relative_to(folder).as_posix()
                for file in files
                for name in list_weights(file)
            },
        }
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")

    def save_config(self, module: Any, card: Any, windows: Windows | None, folder: Path) -> None:
        """Save the config of `PooledForSequenceClassification`."""
        make_config(module.encoder, card, windows).save_pretrained(folder)

    def load(self, source: str, card: Any, tokenizer: Any, trained: bool) -> nn.Module:
        """Load the encoder and, if `trained`, the head."""
        head = Path(source) / HEAD
        # In format 1 and in other checkpoints, the encoder is in the folder itself.
        if head.is_file() and (head.parent / ENCODER).is_dir():
            source = str(head.parent / ENCODER)
            check_contents(Path(source))
        options = {"use_safetensors": True} if trained else {}
        config = self.config(source, card)
        encoder, missing = load_encoder(
            source, config, card.dtype, revision=card.revision, **options
        )
        # transformers adds a randomly initialized pooler, which our head does not use.
        encoder.pooler = None
        if trained:
            check_complete(missing & encoder.state_dict().keys())
        # This subclass has `save_pretrained`, for example to save the model with a merged adapter.
        module = PooledForSequenceClassification(make_config(encoder, card), encoder)
        if trained:
            weights = load_file(head)
            # Up to format 4, the names of the output layer's weights have no prefix.
            for name in {"weight", "bias"} & weights.keys():
                weights[f"classifier.{name}"] = weights.pop(name)
            names = [name for name in module.state_dict() if not name.startswith(BODY)]
            # `weights[name]` raises KeyError for a missing weight; `strict=False` would ignore it.
            module.load_state_dict({name: weights[name] for name in names}, strict=False)
        return module


def check_complete(missing: Iterable[str]) -> None:
    """Raise ValueError if a saved model lacks weights, which transformers would draw at random."""
    if names := sorted(missing):
        raise ValueError(f"{len(names)} weights are missing, for example {names[0]}")


def check_sizes(mismatched: Iterable[tuple[str, Any, Any]], last: str, source: str) -> None:
    """Raise UserError if a weight outside the layer `last` has another shape than its config says.

    `ignore_mismatched_sizes` of transformers accepts wrong shapes in all layers.
    """
    for name, actual, expected in mismatched:
        if not name.startswith(f"{last}."):
            raise UserError(
                f"the weight '{name}' has the shape {[*actual]}, but config.json requires the "
                f"shape {[*expected]}",
                where=source,
                fix="use the config.json that belongs to these weights",
            )


def make_config(encoder: Any, card: Any, windows: Windows | None = None) -> PooledConfig:
    """Create the config of a classifier from its encoder; see `describe_classifier`."""
    # The path of the base model has no meaning in the config.json of the classifier.
    described = {**encoder.config.to_dict(), "_name_or_path": ""}
    return PooledConfig(
        encoder_config=described,
        architectures=[PooledForSequenceClassification.__name__],
        **describe_classifier(card, windows),
    )


def list_weights(file: Path) -> list[str]:
    """Return the names of the weights in a safetensors file."""
    with safe_open(file, "pt") as weights:
        return list(weights.keys())


def set_classes(config: PreTrainedConfig, class_names: Sequence[str]) -> None:
    """Set the class names in a config; transformers pipelines return these names."""
    if class_names:
        # The base model may be a regression or multi-label model. For these types, transformers
        # pipelines apply another function than softmax to the logits.
        config.problem_type = "single_label_classification"
        config.num_labels = len(class_names)
        config.id2label = dict(enumerate(class_names))
        config.label2id = {name: i for i, name in enumerate(class_names)}


def build_pooled_network(
    encoder: nn.Module,
    num_labels: int,
    pooling: str,
    window_pooling: str | None = None,
    dropout: float | None = None,
    missing: Iterable[str] = (),
) -> Network:
    """Add this project's classification head to an encoder, and remove the encoder's pooler.

    For `pooling`, `window_pooling` and `dropout`, see `PooledClassifier`.

    Args:
        missing: names of the encoder's weights that are missing from the checkpoint.
    """
    if getattr(encoder, "pooler", None) is not None:
        setattr(encoder, "pooler", None)  # noqa: B010 - the type of a module's attribute forbids None
    module = PooledClassifier(encoder, num_labels, pooling, dropout, window_pooling)
    fresh = {f"encoder.{name}" for name in missing if not name.startswith("pooler.")}
    # All weights outside the encoder are new: the linear layer and the scores of windows.
    fresh |= {name for name, _ in module.named_parameters() if not name.startswith(BODY)}
    heads = sorted({find_head_module(name) for name in fresh})
    layout = PooledLayout()
    return describe_encoder(module, layout, heads, fresh, pooling, window_pooling=window_pooling)


def freeze_unused_pooler(module: nn.Module) -> set[str]:
    """Freeze the pooler parameters that do not affect the logits, and return their names."""
    named = {n: p for n, p in module.named_parameters() if "pooler" in n.split(".")}
    if not named:
        return set()
    with torch.enable_grad():
        used = find_parameters_in_graph(run_example_batch(module).logits)
    # These weights would get no gradient, which `check_gradients` would refuse.
    unused = {name for name, parameter in named.items() if parameter not in used}
    for name in unused:
        named[name].requires_grad_(False)
    return unused


def find_output_layer(module: Any) -> str:
    """Return the name of the last linear layer in the head of a transformers classifier."""
    # The encoder is left out, because XLM-RoBERTa defines it after its head.
    encoder = f"{module.base_model_prefix}."
    linear = [name for name, part in module.named_modules() if isinstance(part, nn.Linear)]
    return [name for name in linear if not name.startswith(encoder)][-1]


def reset_layer(module: nn.Module, layer: str) -> set[str]:
    """Reinitialize a linear layer as transformers does; return the names of its parameters."""
    linear: Any = module.get_submodule(layer)
    config: Any = module.config
    # 0.02 is the default of transformers for configs without `initializer_range`.
    nn.init.normal_(linear.weight, std=getattr(config, "initializer_range", 0.02))
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)
    return {f"{layer}.{name}" for name, _ in linear.named_parameters()}


def find_head_module(parameter: str) -> str:
    """Return the name of the head module that contains the parameter with a given name.

    If no head module contains the parameter, return the name of the module that owns it.
    """
    parts = parameter.split(".")
    # Classifiers of transformers use these names, for example `score` after a decoder.
    for name in ("classifier", "score", "pooler", "head"):
        if name in parts:
            return ".".join(parts[: parts.index(name) + 1])
    return ".".join(parts[:-1])


def describe_encoder(
    module: nn.Module,
    layout: Layout,
    head: Iterable[str] = (),
    fresh: Iterable[str] = (),
    pooling: str = "",
    window_pooling: str | None = None,
) -> Network:
    """Create the `Network` of a transformers classifier or language model."""
    for part in module.modules():
        if "Sinusoidal" in type(part).__name__:
            # These embeddings are constants, but loading a checkpoint makes them trainable.
            part.requires_grad_(False)
    config: Any = find_hugging_face_model(module).config
    return Network(
        module=module,
        layout=layout,
        # The config of a multimodal model has the number of layers in a nested text config.
        layers=_find_layers(module, config.get_text_config()),
        embeddings=_find_embeddings(module),
        head=list(head),
        fresh=set(fresh),
        max_positions=_count_positions(module, config),
        pooling=pooling,
        window_pooling=window_pooling,
    )


def _find_layers(module: nn.Module, config: Any) -> str:
    # ALBERT runs each of its blocks several times. All published checkpoints have one block.
    repeated = getattr(config, "num_hidden_groups", None)
    count = getattr(config, "num_hidden_layers", 0) if repeated is None else repeated
    # Each architecture has its own name for the list of blocks, so compare the lengths.
    lists = {n: part for n, part in module.named_modules() if isinstance(part, nn.ModuleList)}
    return next((name for name, part in lists.items() if len(flatten_blocks(part)) == count), "")


def _find_embeddings(module: nn.Module) -> list[str]:
    # A module comes before its submodules, so this is the outermost module with this name.
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
