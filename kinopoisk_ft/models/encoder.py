"""Any Hugging Face encoder as a classifier: its own head, or pooling and ours."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    Mamba2Config,
    MambaConfig,
    PreTrainedConfig,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING

from kinopoisk_ft.errors import UserError
from kinopoisk_ft.hub_access import access_hub
from kinopoisk_ft.models.checkpoints import (
    check_dropout,
    class_names_of,
    is_encoder_of_two,
    load_config,
    load_encoder,
    set_dropout,
)
from kinopoisk_ft.models.first_token import shorten
from kinopoisk_ft.models.heads import (
    HuggingFaceLayout,
    describe_encoder,
    freeze_unused_pooler,
    head_module,
    output_layer,
    pooled_network,
    set_classes,
    start_anew,
)
from kinopoisk_ft.models.network import ModelRecipe, Network
from kinopoisk_ft.models.padding import (
    check_padding,
    hugging_face_model,
    lengthen,
    match_tokenizer,
)
from kinopoisk_ft.models.tokenizers import (
    HUB_FIX,
    check_folder,
    check_ids,
    checkpoint_tokenizer,
)

log = logging.getLogger(__name__)

Pooling = Literal["auto", "pooler", "cls", "mean", "last"]


class Encoder(ModelRecipe):
    """The group `model`'s `encoder`, `bert` and `bert_tiny`."""

    def __init__(
        self,
        *,
        name: str,
        revision: str | None,
        tokenizer: str,
        tokenizer_revision: str | None = None,
        pooling: Pooling,
        dropout: float | None,
        lr: float,
        head_lr: float | None,
        targets: dict[str, list[str] | str],
    ) -> None:
        self.name, self.revision = name, revision
        self.tokenizer, self.tokenizer_revision = tokenizer, tokenizer_revision
        self.pooling, self.dropout, self.lr = pooling, dropout, lr
        self.head_lr, self.targets = head_lr, targets
        check_dropout(dropout)
        check_folder(name, "model.name")

    def load_tokenizer(self, texts: Sequence[str]) -> Any:
        """Return the checkpoint's tokenizer."""
        return checkpoint_tokenizer(self)

    def build(self, class_names: Sequence[str], tokenizer: Any) -> Network:
        """Return the classifier in fp32, whatever the checkpoint's dtype.

        Args:
            tokenizer: is compared with the checkpoint; None to compare nothing.
        """
        config = self._config()
        trained_for = class_names_of(config)
        set_classes(config, class_names)
        network = None
        if self._has_classifier(config):
            network = self._hugging_face(config, trained_for)
        if network is None:
            network = self._pooled(config, len(class_names))
        if network.fresh:
            log.info("fresh weights, all of them trained: %s", ", ".join(sorted(network.fresh)))
        if tokenizer is not None:
            match_tokenizer(network.module, tokenizer, self.name)
            lengthen(network.module, tokenizer.pad_token_id)
            check_padding(network.module, tokenizer.pad_token_id, self.name)
        return shorten(network)

    def build_lm(self, tokenizer: Any) -> Network:
        """Return the encoder with its masked-token head."""
        config = self._config()
        with access_hub("model", self.name, HUB_FIX):
            module = AutoModelForMaskedLM.from_pretrained(self.name, **self._source(config))
        rows = len(hugging_face_model(module).get_input_embeddings().weight)
        check_ids(tokenizer, rows, self.name, every_id=True)
        match_tokenizer(module, tokenizer, self.name)
        return describe_encoder(
            module, config, HuggingFaceLayout(), [], set(), self._base(), self.revision, ""
        )

    def _has_classifier(self, config: PreTrainedConfig) -> bool:
        """Return whether to try Hugging Face's classifier; of two-part models only the encoder."""
        known = type(config) in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING
        possible = known and not is_encoder_of_two(config)
        if self.pooling == "pooler" and not possible:
            raise UserError(
                f"'{self.name}' is a '{config.model_type}' model, which has no pooler here",
                where="model.pooling",
                fix="use model.pooling=auto, mean, cls or last",
            )
        return possible and self.pooling in ("auto", "pooler")

    def _hugging_face(self, config: PreTrainedConfig, trained_for: list[str]) -> Network | None:
        """Return Hugging Face's classifier; None if `auto` and more than its last layer is new."""
        with access_hub("model", self.name, HUB_FIX):
            module, info = AutoModelForSequenceClassification.from_pretrained(
                self.name,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                **self._source(config),
            )
        last = output_layer(module)
        self._check_sizes(info["mismatched_keys"], last)
        unused = freeze_unused_pooler(module)
        fresh = {*info["missing_keys"], *(name for name, *_ in info["mismatched_keys"])} - unused
        if self.pooling == "auto" and any(not name.startswith(f"{last}.") for name in fresh):
            log.info("%s has no trained classifier below its last layer: mean pooling and our own "
                     "head instead", self.name)  # fmt: skip
            return None
        if not fresh and trained_for != class_names_of(config):
            log.info("%s was trained for the classes %s: its last layer starts from random weights",
                     self.name, trained_for)  # fmt: skip
            fresh = start_anew(module, last)
        heads = sorted({head_module(name) for name in fresh | {f"{last}.weight"}})
        return describe_encoder(
            module, config, HuggingFaceLayout(), heads, fresh, self._base(), self.revision, "pooler"
        )

    def _check_sizes(self, mismatched: Sequence[tuple[str, Any, Any]], last: str) -> None:
        """Raise UserError for weights below the last layer whose shape is not the config's."""
        for name, found, expected in mismatched:
            if not name.startswith(f"{last}."):
                raise UserError(
                    f"'{self.name}' has '{name}' in the shape {[*found]}, and its config.json says "
                    f"{[*expected]}",
                    where="model.name",
                    fix="use the config.json that belongs to these weights",
                )

    def _pooled(self, config: PreTrainedConfig, num_labels: int) -> Network:
        pooling = "mean" if self.pooling == "auto" else self.pooling
        with access_hub("model", self.name, HUB_FIX):
            encoder, missing = load_encoder(self.name, config, revision=self.revision)
        return pooled_network(
            encoder, config, num_labels, pooling, missing, self._base(), self.revision, self.dropout
        )

    def _config(self) -> PreTrainedConfig:
        config = load_config(self.name, self.revision)
        if isinstance(config, MambaConfig | Mamba2Config):
            raise UserError(
                f"'{self.name}' is a '{config.model_type}' model",
                where="model.name",
                fix=f"use model={config.model_type}",
            )
        if self.dropout is not None:
            set_dropout(config, self.dropout, self.name)
        return config

    def _source(self, config: PreTrainedConfig) -> dict[str, Any]:
        return {
            "config": config,
            "revision": self.revision,
            "dtype": torch.float32,
            "trust_remote_code": False,
        }

    def _base(self) -> str:
        return str(Path(self.name).resolve()) if Path(self.name).is_dir() else self.name
