"""Mamba and Mamba-2 from a checkpoint in Hugging Face's layout, with our backbone and head."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import hf_hub_download
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from kinopoisk_ft.errors import UserError
from kinopoisk_ft.hub_access import access_hub
from kinopoisk_ft.models.checkpoints import load_config
from kinopoisk_ft.models.mamba import AnyConfig, MambaClassifier, MambaLM
from kinopoisk_ft.models.network import WEIGHTS, Layout, ModelRecipe, Network
from kinopoisk_ft.models.tokenizers import (
    HUB_FIX,
    check_folder,
    check_ids,
    checkpoint_tokenizer,
)
from kinopoisk_ft.models.untrusted import fits_together, shards

log = logging.getLogger(__name__)

Pooling = Literal["last", "mean", "last_position"]
Backend = Literal["auto", "reference", "torch", "numba", "cuda"]
NO_ADAPTER = {"conv1d": "its weight goes straight into the fused convolution"}


class Mamba(ModelRecipe):
    """The group `model`'s `mamba` and `mamba2`: the checkpoint's config says which it is."""

    def __init__(
        self,
        *,
        name: str,
        revision: str | None,
        tokenizer: str,
        tokenizer_revision: str | None = None,
        pooling: Pooling,
        scan_backend: Backend,
        lr: float,
        head_lr: float | None,
        targets: dict[str, list[str] | str],
    ) -> None:
        self.name, self.revision = name, revision
        self.tokenizer, self.tokenizer_revision = tokenizer, tokenizer_revision
        self.pooling, self.scan_backend = pooling, scan_backend
        self.lr, self.head_lr, self.targets = lr, head_lr, targets
        check_folder(name, "model.name")

    def load_tokenizer(self, texts: Sequence[str]) -> Any:
        """Return the checkpoint's tokenizer."""
        return checkpoint_tokenizer(self)

    def build(self, class_names: Sequence[str], tokenizer: Any) -> Network:
        """Return the classifier in fp32, whatever the checkpoint's dtype."""
        config = self._config(tokenizer)
        module = MambaClassifier(config, len(class_names), self.pooling, self.scan_backend)
        self._load(module)
        base = str(Path(self.name).resolve()) if Path(self.name).is_dir() else self.name
        return describe(module, base, self.pooling, self.revision)

    def build_lm(self, tokenizer: Any) -> Network:
        """Return the backbone with its tied next-token head."""
        config = self._config(tokenizer, every_id=True)
        module = MambaLM(config, scan_backend=self.scan_backend)
        self._load(module)
        return describe(module, self.name, "", self.revision)

    def _config(self, tokenizer: Any, every_id: bool = False) -> AnyConfig:
        """Read the checkpoint's config, compare it with the tokenizer, and write its pad id."""
        config = read_config(self.name, self.revision)
        if tokenizer is not None:
            check_ids(tokenizer, config.vocab_size, self.name, every_id)
            config.pad_token_id = tokenizer.pad_token_id
        return config

    def _load(self, module: nn.Module) -> None:
        load_backbone(module, read_weights(self.name, self.revision), self.name)


class MambaLayout(Layout):
    """Mamba in the layout of its checkpoints, which `MambaModel` reads, with our head."""

    name = "mamba"
    backbone = "backbone"

    def save(self, module: Any, folder: Path) -> None:
        """Write config and weights."""
        module.mamba_config.save_pretrained(folder)
        # A tied head shows up twice in a state dict; parameters are named once.
        weights = dict(module.named_parameters()) | dict(module.named_buffers())
        save_file(
            {name: value.detach().contiguous() for name, value in weights.items()},
            folder / WEIGHTS,
            metadata={"format": "pt"},
        )

    def load(self, source: str, card: Any, tokenizer: Any, trained: bool) -> nn.Module:
        """Load the backbone, and the head if it was trained."""
        config = read_config(source, card.revision)
        module = MambaClassifier(config, len(card.class_names), card.pooling)
        weights = read_weights(source, card.revision)
        load_backbone(module, weights, source)
        if trained:
            module.load_state_dict(weights)
        return module

    def match_tokenizer(self, module: Any, tokenizer: Any, source: str) -> None:
        """Compare the number of embeddings with the tokenizer's ids."""
        check_ids(tokenizer, len(module.backbone.embeddings.weight), source)


def describe(module: nn.Module, base: str | None, pooling: str, revision: str | None) -> Network:
    """Return what the project needs to know of a Mamba classifier or language model."""
    head = [name for name, _ in module.named_children() if name == "classifier"]
    return Network(
        module=module,
        layout=MambaLayout(),
        layers="backbone.layers",
        embeddings=["backbone.embeddings"],
        head=head,
        fresh={f"{name}.{part}" for name in head for part in ("weight", "bias")},
        base=base,
        max_positions=None,
        pooling=pooling,
        revision=revision,
        no_adapter=NO_ADAPTER,
    )


def load_backbone(module: nn.Module, weights: dict[str, Tensor], where: str) -> None:
    """Copy `backbone.*` weights into a module, in fp32.

    Raises:
        UserError: one is missing, or has another shape than the config says.
    """
    backbone: Any = module.backbone
    state = {k.removeprefix("backbone."): v for k, v in weights.items()}
    state = {
        k.replace("embedding.weight", "embeddings.weight"): v.float() for k, v in state.items()
    }
    with fits_together(Path(where)):
        missing, _ = backbone.load_state_dict(state, strict=False)
    if missing:
        raise UserError(
            f"the checkpoint lacks {len(missing)} weights of a Mamba backbone, say {missing[0]}",
            where=where,
            fix="give a checkpoint in the layout of Hugging Face's MambaModel (names end in -hf)",
        )


def read_config(name: str, revision: str | None) -> AnyConfig:
    """Read config.json of a folder or hub repository."""
    config: Any = load_config(name, revision)
    if not isinstance(config, AnyConfig):
        raise UserError(
            f"'{name}' is a '{config.model_type}' model, not a Mamba",
            where="model.name",
            fix="use model=encoder for BERT-like models",
        )
    return config


def read_weights(name: str, revision: str | None) -> dict[str, Tensor]:
    """Read all safetensors weights of a folder or hub repository, one file or sharded."""
    names = [WEIGHTS]
    if Path(name).is_dir():
        index = Path(name) / "model.safetensors.index.json"
        if index.exists():
            names = shards(index)
        files = [Path(name) / shard for shard in names]
        for file in files:
            if not file.is_file():
                what = f"there is no {file.name} in '{name}'"
                raise UserError(what, where="model.name", fix=HUB_FIX)
    else:
        with access_hub("model", name, HUB_FIX):
            files = [Path(hf_hub_download(name, shard, revision=revision)) for shard in names]
    weights: dict[str, Tensor] = {}
    for file in files:
        with fits_together(file):
            weights |= load_file(file)
    return weights
