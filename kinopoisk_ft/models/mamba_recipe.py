"""Build Mamba and Mamba-2 classifiers from checkpoints in Hugging Face format."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import FalconMambaConfig, Mamba2Config, MambaConfig

from kinopoisk_ft.data.windows import Windows
from kinopoisk_ft.errors import UserError
from kinopoisk_ft.hub_access import access_hub
from kinopoisk_ft.models.checkpoints import CheckpointRecipe, load_config
from kinopoisk_ft.models.hf_classes import MODELS
from kinopoisk_ft.models.hf_configs import (
    Mamba2ClassifierConfig,
    MambaClassifierConfig,
    convert_config,
    describe_classifier,
)
from kinopoisk_ft.models.mamba import AnyConfig, MambaClassifier, MambaLM
from kinopoisk_ft.models.network import WEIGHTS, Layout, Network
from kinopoisk_ft.models.tokenizers import HUB_FIX, check_ids
from kinopoisk_ft.models.untrusted import INDEX, explain_load_errors, read_shard_names

log = logging.getLogger(__name__)

Pooling = Literal["last", "mean", "last_position"]
Backend = Literal["auto", "reference", "torch", "numba", "cuda"]


@dataclass(kw_only=True, eq=False)
class Mamba(CheckpointRecipe):
    """A recipe for a pretrained Mamba, Falcon Mamba or Mamba-2 (model=mamba, mamba2 and others)."""

    pooling: Pooling
    scan_backend: Backend

    def build(self, class_names: Sequence[str], tokenizer: Any) -> Network:
        """Build the classifier in fp32, regardless of the checkpoint's dtype."""
        with self._read_config(tokenizer) as config:
            module = MambaClassifier(
                config, len(class_names), self.pooling, self.scan_backend, self.used_window_pooling
            )
        return self._load_weights(module)

    def build_skeleton(self) -> Network | None:
        """Build the classifier without weights, on the meta device."""
        with self._read_config(None) as config, torch.device("meta"):
            module = MambaClassifier(config, 2, self.pooling)
        return describe_mamba(module)

    def build_lm(self, tokenizer: Any) -> Network:
        """Build a language model that predicts the next token, for pretraining."""
        with self._read_config(tokenizer, every_id=True) as config:
            module = MambaLM(config, self.scan_backend)
        return self._load_weights(module)

    @contextmanager
    def _read_config(self, tokenizer: Any, every_id: bool = False) -> Iterator[AnyConfig]:
        """Yield the config; if no model can be built from it, raise UserError."""
        config = read_config(self.name, self.revision)
        if tokenizer is not None:
            check_ids(tokenizer, config.vocab_size, self.name, every_id)
            # A saved classifier pads the windows of long texts with this id.
            config.pad_token_id = tokenizer.pad_token_id
        with explain_load_errors(Path(self.name)):
            yield config

    def _load_weights(self, module: MambaClassifier | MambaLM) -> Network:
        load_backbone(module, read_weights(self.name, self.revision), self.name)
        return self.set_origin(describe_mamba(module))


class MambaLayout(Layout):
    """Saves and loads Mamba with this project's classification head."""

    name = "mamba"
    backbone = "backbone"
    divides_long_texts = True

    def save(self, module: Any, folder: Path) -> None:
        """Save the config and weights."""
        module.mamba_config.save_pretrained(folder)
        # A state dict contains a tied weight twice, which safetensors rejects.
        weights = dict(module.named_parameters()) | dict(module.named_buffers())
        # safetensors also rejects tensors that are not contiguous.
        save_file(
            {name: value.detach().contiguous() for name, value in weights.items()},
            folder / WEIGHTS,
            metadata={"format": "pt"},
        )

    def save_config(self, module: Any, card: Any, windows: Windows | None, folder: Path) -> None:
        """Save the config of `MambaForSequenceClassification`."""
        make_config(module.mamba_config, card, windows).save_pretrained(folder)

    def load(self, source: str, card: Any, tokenizer: Any, trained: bool) -> nn.Module:
        """Load the backbone and, if `trained`, the head."""
        config = make_config(read_config(source, card.revision), card)
        # This subclass has `save_pretrained`, for example to save the model with a merged adapter.
        module = MODELS[type(config)](config)
        weights = read_weights(source, card.revision)
        load_backbone(module, weights, source)
        if trained:
            # This strict check refuses a folder in which weights of the head are missing.
            module.load_state_dict(weights)
        return module

    def match_tokenizer(self, module: Any, tokenizer: Any, source: str) -> None:
        """Raise UserError if a token id has no embedding."""
        check_ids(tokenizer, len(module.backbone.embeddings.weight), source)


def make_config(config: AnyConfig, card: Any, windows: Windows | None = None) -> AnyConfig:
    """Create the config of a classifier from a Mamba config; see `describe_classifier`."""
    is_mamba2 = isinstance(config, Mamba2Config)
    kind = Mamba2ClassifierConfig if is_mamba2 else MambaClassifierConfig
    names = [MODELS[kind].__name__]
    options = describe_classifier(card, windows)
    return convert_config(config, kind, architectures=names, **options)


def describe_mamba(module: MambaClassifier | MambaLM) -> Network:
    """Create the `Network` of a Mamba classifier or language model."""
    # The scores exist only if windows are pooled with attention.
    heads = ("classifier", "window_pooling.score")
    windows = getattr(module, "window_pooling", None)
    return Network(
        module=module,
        layout=MambaLayout(),
        layers="backbone.layers",
        embeddings=["backbone.embeddings"],
        head=[name for name, _ in module.named_modules() if name in heads],
        fresh={name for name, _ in module.named_parameters() if name.rpartition(".")[0] in heads},
        pooling=getattr(module, "pooling", ""),
        window_pooling=windows and windows.kind,
        # The mixer does not call conv1d, so an adapter on it would be bypassed.
        no_adapter={"conv1d": "its weight is passed directly to the fused convolution"},
    )


def load_backbone(module: nn.Module, weights: dict[str, Tensor], where: str) -> None:
    """Copy the weights named `backbone.*` into the backbone of a module, in fp32.

    Raises:
        UserError: a weight is missing, or its shape does not match the config.
    """
    backbone: Any = module.backbone
    # A `MambaModel` that is saved without a head has no such prefix.
    state = {k.removeprefix("backbone."): v for k, v in weights.items()}
    # Checkpoints of the original authors call this weight `backbone.embedding.weight`.
    state = {
        k.replace("embedding.weight", "embeddings.weight"): v.float() for k, v in state.items()
    }
    with explain_load_errors(Path(where)):
        # The weights of heads, such as `lm_head.weight`, are unexpected here, and are ignored.
        missing, _ = backbone.load_state_dict(state, strict=False)
    if missing:
        raise UserError(
            f"the checkpoint lacks {len(missing)} weights of a Mamba backbone, for example "
            f"{missing[0]}",
            where=where,
            fix="use a checkpoint in the format of transformers (repository names end in -hf)",
        )


def read_config(name: str, revision: str | None) -> AnyConfig:
    """Load the Mamba or Mamba-2 config of a local folder or Hub repository.

    Raises:
        UserError: the config cannot be loaded, or belongs to another architecture.
    """
    config: Any = load_config(name, revision)
    if not isinstance(config, AnyConfig):
        raise UserError(
            f"'{name}' is a '{config.model_type}' model, not a Mamba model",
            where="model.name",
            fix="use model=encoder for BERT-like models",
        )
    # A saved Falcon Mamba classifier has a MambaClassifierConfig, which keeps this option.
    kind = FalconMambaConfig if hasattr(config, "mixer_rms_eps") else MambaConfig
    with explain_load_errors(Path(name)):
        return convert_config(config, Mamba2Config if isinstance(config, Mamba2Config) else kind)


def read_weights(name: str, revision: str | None) -> dict[str, Tensor]:
    """Load all safetensors weights of a local folder or Hub repository."""
    if Path(name).is_dir():
        index = Path(name) / INDEX
        names = read_shard_names(index) if index.exists() else [WEIGHTS]
        files = [Path(name) / shard for shard in names]
        for file in files:
            if not file.is_file():
                what = f"the folder '{name}' has no file {file.name}"
                raise UserError(what, where="model.name", fix=HUB_FIX)
    else:
        with access_hub("model", name, HUB_FIX):
            files = _download_weights(name, revision)
    weights: dict[str, Tensor] = {}
    for file in files:
        with explain_load_errors(file):
            weights |= load_file(file)
    return weights


def _download_weights(name: str, revision: str | None) -> list[Path]:
    try:
        # Small checkpoints consist of one file, and large ones of an index and several files.
        return [Path(hf_hub_download(name, WEIGHTS, revision=revision))]
    except EntryNotFoundError as error:
        try:
            index = Path(hf_hub_download(name, INDEX, revision=revision))
        except EntryNotFoundError:
            # The first error names the file that people know, model.safetensors.
            raise error from None
    return [Path(hf_hub_download(name, n, revision=revision)) for n in read_shard_names(index)]
