"""Any Hugging Face encoder as a classifier: its own head, or pooling and ours."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
)
from transformers.modeling_outputs import SequenceClassifierOutput

from kinopoisk_ft.errors import UserError
from kinopoisk_ft.hub import hub_errors
from kinopoisk_ft.models.network import Kind, Network
from kinopoisk_ft.models.pooling import pool
from kinopoisk_ft.models.tokenizers import HUB_FIX, check_folder, load_tokenizer

log = logging.getLogger(__name__)

Pooling = Literal["auto", "pooler", "cls", "mean", "last"]


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


class Encoder:
    """The group `model`'s `encoder`, `bert` and `bert_tiny`."""

    def __init__(
        self,
        *,
        name: str,
        revision: str | None,
        tokenizer: str,
        pooling: Pooling,
        dropout: float | None,
        lr: float,
        head_lr: float | None,
        targets: dict[str, list[str]],
    ) -> None:
        self.name, self.revision, self.tokenizer = name, revision, tokenizer
        self.pooling, self.dropout, self.lr = pooling, dropout, lr
        self.head_lr, self.targets = head_lr, targets
        check_folder(name, "model.name")

    def load_tokenizer(self, texts: Sequence[str]) -> Any:
        """Return the checkpoint's tokenizer."""
        return load_tokenizer(self.tokenizer, self.revision)

    def build(self, class_names: Sequence[str], tokenizer: Any) -> Network:
        """Return the classifier in fp32, whatever the checkpoint's dtype."""
        config = self._config(class_names)
        network = None
        if self.pooling in ("auto", "pooler"):
            network = self._hugging_face(config)
        if network is None:
            network = self._pooled(config, len(class_names))
        if network.fresh:
            log.info("fresh weights, all of them trained: %s", ", ".join(sorted(network.fresh)))
        return network

    def build_lm(self, tokenizer: Any) -> Network:
        """Return the encoder with its masked-token head."""
        config = self._config(())
        with hub_errors(f"model '{self.name}'", HUB_FIX):
            module = AutoModelForMaskedLM.from_pretrained(self.name, **self._source(config))
        return _describe(module, config, "hf", [], set(), self._base(), self.revision, "")

    def _hugging_face(self, config: PreTrainedConfig) -> Network | None:
        """Return Hugging Face's classifier; None if `auto` and the checkpoint lacks its pooler."""
        with hub_errors(f"model '{self.name}'", HUB_FIX):
            module, info = AutoModelForSequenceClassification.from_pretrained(
                self.name, output_loading_info=True, **self._source(config)
            )
        fresh = set(info["missing_keys"])
        pooler = {name for name in fresh if ".pooler." in name}
        if pooler and self.pooling == "auto":
            log.info("%s has no trained pooler: mean pooling and our own head instead", self.name)
            return None
        heads = sorted({_head_module(name) for name in fresh})
        return _describe(module, config, "hf", heads, fresh, self._base(), self.revision, "pooler")

    def _pooled(self, config: PreTrainedConfig, num_labels: int) -> Network:
        pooling = "mean" if self.pooling == "auto" else self.pooling
        with hub_errors(f"model '{self.name}'", HUB_FIX):
            encoder, info = AutoModel.from_pretrained(
                self.name, output_loading_info=True, **self._source(config)
            )
        return pooled_network(
            encoder, config, num_labels, pooling, info["missing_keys"], self._base(), self.revision
        )

    def _config(self, class_names: Sequence[str]) -> PreTrainedConfig:
        with hub_errors(f"model '{self.name}'", HUB_FIX):
            config = AutoConfig.from_pretrained(
                self.name, revision=self.revision, trust_remote_code=False
            )
        set_classes(config, class_names)
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
    heads = sorted({_head_module(name) for name in fresh})
    return _describe(module, config, "pooled", heads, fresh, base, revision, pooling)


def _head_module(parameter: str) -> str:
    """Return the module to train whole for a fresh parameter: `classifier`, `bert.pooler`…"""
    parts = parameter.split(".")
    for name in ("classifier", "score", "pooler", "head"):
        if name in parts:
            return ".".join(parts[: parts.index(name) + 1])
    return ".".join(parts[:-1])


def _describe(
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
