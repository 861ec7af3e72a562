"""Any Hugging Face encoder as a classifier: its own head, or pooling and ours."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
)

from kinopoisk_ft.errors import UserError
from kinopoisk_ft.hub import hub_errors
from kinopoisk_ft.models.first_token import shorten
from kinopoisk_ft.models.heads import (
    describe_encoder,
    head_module,
    output_layer,
    pooled_network,
    set_classes,
    start_anew,
)
from kinopoisk_ft.models.network import Network
from kinopoisk_ft.models.tokenizers import HUB_FIX, check_folder, checkpoint_tokenizer

log = logging.getLogger(__name__)

Pooling = Literal["auto", "pooler", "cls", "mean", "last"]


class Encoder:
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
        check_folder(name, "model.name")

    def load_tokenizer(self, texts: Sequence[str]) -> Any:
        """Return the checkpoint's tokenizer."""
        return checkpoint_tokenizer(self)

    def build(self, class_names: Sequence[str], tokenizer: Any) -> Network:
        """Return the classifier in fp32, whatever the checkpoint's dtype."""
        config = self._config()
        trained_for = [*(config.id2label or {}).values()]
        set_classes(config, class_names)
        network = None
        if self.pooling in ("auto", "pooler"):
            network = self._hugging_face(config, trained_for)
        if network is None:
            network = self._pooled(config, len(class_names))
        if network.fresh:
            log.info("fresh weights, all of them trained: %s", ", ".join(sorted(network.fresh)))
        return shorten(network)

    def build_lm(self, tokenizer: Any) -> Network:
        """Return the encoder with its masked-token head."""
        config = self._config()
        with hub_errors(f"model '{self.name}'", HUB_FIX):
            module = AutoModelForMaskedLM.from_pretrained(self.name, **self._source(config))
        return describe_encoder(module, config, "hf", [], set(), self._base(), self.revision, "")

    def _hugging_face(self, config: PreTrainedConfig, trained_for: list[str]) -> Network | None:
        """Return Hugging Face's classifier; None if `auto` and more than its last layer is new."""
        with hub_errors(f"model '{self.name}'", HUB_FIX):
            module, info = AutoModelForSequenceClassification.from_pretrained(
                self.name,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                **self._source(config),
            )
        fresh = {*info["missing_keys"], *(name for name, *_ in info["mismatched_keys"])}
        last = output_layer(module)
        if self.pooling == "auto" and any(not name.startswith(f"{last}.") for name in fresh):
            log.info("%s has no trained classifier below its last layer: mean pooling and our own "
                     "head instead", self.name)  # fmt: skip
            return None
        if not fresh and trained_for != [*config.id2label.values()]:
            log.info("%s tells %s apart: its last layer starts anew", self.name, trained_for)
            fresh = start_anew(module, last)
        heads = sorted({head_module(name) for name in fresh | {f"{last}.weight"}})
        return describe_encoder(
            module, config, "hf", heads, fresh, self._base(), self.revision, "pooler"
        )

    def _pooled(self, config: PreTrainedConfig, num_labels: int) -> Network:
        pooling = "mean" if self.pooling == "auto" else self.pooling
        with hub_errors(f"model '{self.name}'", HUB_FIX):
            encoder, info = AutoModel.from_pretrained(
                self.name, output_loading_info=True, **self._source(config)
            )
        return pooled_network(
            encoder, config, num_labels, pooling, info["missing_keys"], self._base(), self.revision
        )

    def _config(self) -> PreTrainedConfig:
        with hub_errors(f"model '{self.name}'", HUB_FIX):
            config = AutoConfig.from_pretrained(
                self.name, revision=self.revision, trust_remote_code=False
            )
        if self.dropout is not None:
            for key in ("hidden_dropout_prob", "attention_probs_dropout_prob"):
                if not hasattr(config, key):
                    raise UserError(
                        f"'{self.name}' ({config.model_type}) has no setting '{key}'",
                        where="model.dropout",
                        fix="leave model.dropout=null",
                    )
                setattr(config, key, self.dropout)
        return config

    def _source(self, config: PreTrainedConfig) -> dict[str, Any]:
        return {
            "config": config,
            "revision": self.revision,
            "dtype": torch.float32,
            "attn_implementation": "sdpa",
            "trust_remote_code": False,
        }

    def _base(self) -> str:
        return str(Path(self.name).resolve()) if Path(self.name).is_dir() else self.name
