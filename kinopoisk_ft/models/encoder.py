"""Build text classifiers from Hugging Face encoders."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    MODEL_MAPPING,
)

from kinopoisk_ft.errors import UserError
from kinopoisk_ft.hub_access import access_hub
from kinopoisk_ft.models.checkpoints import (
    CheckpointRecipe,
    build_without_weights,
    check_dropout,
    has_decoder,
    load_config,
    load_encoder,
    read_class_names,
    set_dropout,
)
from kinopoisk_ft.models.first_token import shorten_last_block
from kinopoisk_ft.models.frozen_weights import (
    DTYPES,
    Dtype,
    check_stored,
    store_in_bf16,
    store_in_fp32,
)
from kinopoisk_ft.models.heads import (
    HuggingFaceLayout,
    build_pooled_network,
    check_sizes,
    describe_encoder,
    find_head_module,
    find_output_layer,
    freeze_unused_pooler,
    reset_layer,
    set_classes,
)
from kinopoisk_ft.models.mamba import AnyConfig as AnyMambaConfig
from kinopoisk_ft.models.network import Network
from kinopoisk_ft.models.padding import (
    check_padding,
    find_hugging_face_model,
    match_tokenizer,
    pad_for_funnel,
)
from kinopoisk_ft.models.tokenizers import HUB_FIX, check_ids

log = logging.getLogger(__name__)

Pooling = Literal["auto", "pooler", "cls", "mean", "last"]


@dataclass(kw_only=True, eq=False)
class Encoder(CheckpointRecipe):
    """A recipe for a classifier with a Hugging Face encoder (model=encoder, bert and others).

    Args:
        pooling: "pooler" uses the classifier of transformers. "cls", "mean" and "last" use this
            project's classification head. "auto" chooses "pooler" if the checkpoint has weights for
            the whole transformers classifier, or for all of it except the last layer; otherwise it
            chooses "mean". With windows, "pooler" is not available, and "auto" chooses "mean".
        dropout: probability for all dropout layers. If None, the values in config.json are used.
        dtype: dtype of the frozen weights if a PEFT adapter is used, "fp32" or "bf16"; see
            `store_in_bf16`.
    """

    pooling: Pooling
    dropout: float | None
    dtype: Dtype = "fp32"

    def __post_init__(self) -> None:
        check_dropout(self.dropout)
        super().__post_init__()

    def build(self, class_names: Sequence[str], tokenizer: Any) -> Network:
        """Build the classifier. `dtype`, not the checkpoint, determines how its weights are stored.

        Args:
            tokenizer: if None, neither the tokenizer nor the effect of padding is checked.

        Raises:
            UserError: the checkpoint cannot be loaded, the tokenizer does not match it, or padding
                changes the logits.
        """
        config = self._read_config()
        original_names = read_class_names(config)
        # Loading needs the number of classes, because it is the size of the last layer.
        set_classes(config, class_names)
        network = None
        if self._has_classifier(config):
            network = self._build_hugging_face(config, original_names)
        if network is None:
            network = self._build_pooled(config, len(class_names))
        # Every adapter trains the head, and trained weights must be fp32.
        store_in_fp32(network.module, network.head)
        check_stored(network.module, self.name)
        if network.fresh:
            names = ", ".join(sorted(network.fresh))
            log.debug("newly initialized weights, which every adapter trains: %s", names)
        # The padding check comes last, because it needs the pad id and Funnel's extra padding.
        if tokenizer is not None:
            match_tokenizer(network.module, tokenizer, self.name)
            pad_for_funnel(network.module, tokenizer.pad_token_id)
            check_padding(network.module, tokenizer.pad_token_id, self.name)
        return shorten_last_block(self.set_origin(network))

    def check_gradient_checkpointing(self) -> None:
        """Raise UserError if transformers lacks gradient checkpointing for this model type."""
        config = self._read_config()
        model = MODEL_MAPPING.get(type(config), None)
        if not getattr(model, "supports_gradient_checkpointing", True):
            raise UserError(
                f"transformers does not implement gradient checkpointing for the "
                f"'{config.model_type}' model '{self.name}'",
                where="trainer.gradient_checkpointing",
                fix="use trainer.gradient_checkpointing=false; to save memory, lower "
                "trainer.micro_batch_size",
            )

    def check_dtype(self, adapter: Any, strategy: str) -> None:
        """Raise UserError if bf16 weights would be trained, or sharded together with fp32 ones."""
        if self.dtype == "fp32":
            return
        if not adapter.needs_saved_base:
            raise UserError(
                f"model.dtype={self.dtype} works only if all weights of the base are frozen, but "
                "this adapter trains some of them or saves a copy of them",
                where="model.dtype",
                fix="use an adapter of PEFT such as adapter=lora, or model.dtype=fp32; to compute "
                "in bf16, use trainer.precision=bf16",
            )
        if strategy == "fsdp":
            raise UserError(
                f"model.dtype={self.dtype} does not work with trainer.strategy=fsdp, which shards "
                "only weights of one dtype",
                where="model.dtype",
                fix="use trainer.strategy=ddp or model.dtype=fp32",
            )

    def check_pretraining(self) -> None:
        """Raise UserError if the weights are stored in bf16: trained weights must be fp32."""
        super().check_pretraining()
        if self.dtype != "fp32":
            raise UserError(
                f"model.dtype={self.dtype} does not work with pretraining, which trains all "
                "weights",
                where="model.dtype",
                fix="use model.dtype=fp32; to compute in bf16, use trainer.precision=bf16",
            )

    def build_skeleton(self) -> Network | None:
        """Build a classifier without weights. Its head may differ from the head in `build`."""
        config = self._read_config()
        # The result is not needed. The call refuses a value of `pooling` that is not available.
        self._has_classifier(config)
        with torch.device("meta"):
            # The number of classes and the pooling do not affect the layers below the head.
            return build_pooled_network(build_without_weights(config), 2, "mean")

    def build_lm(self, tokenizer: Any) -> Network:
        """Build a masked language model for pretraining."""
        config = self._read_config()
        with access_hub("model", self.name, HUB_FIX):
            # Pretraining trains all weights, and trained weights must be fp32.
            module = AutoModelForMaskedLM.from_pretrained(
                self.name, config=config, revision=self.revision, dtype=torch.float32,
                trust_remote_code=False,
            )  # fmt: skip
        rows = len(find_hugging_face_model(module).get_input_embeddings().weight)
        check_ids(tokenizer, rows, self.name, every_id=True)
        match_tokenizer(module, tokenizer, self.name)
        return self.set_origin(describe_encoder(module, HuggingFaceLayout()))

    def _has_classifier(self, config: PreTrainedConfig) -> bool:
        known = type(config) in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING
        # Classifiers of encoder-decoder models also run the decoder, which this project leaves out.
        possible = known and not has_decoder(config)
        if self.pooling == "pooler" and not possible:
            raise UserError(
                f"model.pooling=pooler is not available for the '{config.model_type}' model "
                f"'{self.name}': transformers has no encoder-only classifier of this type",
                where="model.pooling",
                fix="set model.pooling to auto, mean, cls or last",
            )
        if self.pooling == "pooler" and self.reads_windows:
            raise UserError(
                "model.pooling=pooler cannot read windows, because the classifier of transformers "
                "reads only one window per review",
                where="model.pooling",
                fix="set model.pooling to auto, mean, cls or last, or set data.truncation to head, "
                "tail or head_tail",
            )
        return possible and not self.reads_windows and self.pooling in ("auto", "pooler")

    def _build_hugging_face(
        self, config: PreTrainedConfig, original_names: list[str]
    ) -> Network | None:
        with access_hub("model", self.name, HUB_FIX):
            # If the last layer was trained for another number of classes, its shape differs.
            module, info = AutoModelForSequenceClassification.from_pretrained(
                self.name, config=config, revision=self.revision, dtype=DTYPES[self.dtype],
                trust_remote_code=False, output_loading_info=True, ignore_mismatched_sizes=True,
            )  # fmt: skip
        if self.dtype == "bf16":
            store_in_bf16(module)
        last = find_output_layer(module)
        check_sizes(info["mismatched_keys"], last, self.name)
        unused = freeze_unused_pooler(module)
        # Missing and mismatched weights are random now. An unused pooler is not trained.
        fresh = {*info["missing_keys"], *(name for name, *_ in info["mismatched_keys"])} - unused
        if self.pooling == "auto" and any(not name.startswith(f"{last}.") for name in fresh):
            log.info("%s lacks classifier weights below the last layer, so mean pooling and a "
                     "linear head are used instead", self.name)  # fmt: skip
            return None
        # The shape fits, but the rows of the last layer belong to other classes or another order.
        if not fresh and original_names != read_class_names(config):
            log.info("%s was trained for other classes (%s), so its last layer is initialized "
                     "randomly", self.name, ", ".join(original_names))  # fmt: skip
            fresh = reset_layer(module, last)
        # The last layer belongs to the head even if all of its weights were loaded.
        heads = sorted({find_head_module(name) for name in fresh | {f"{last}.weight"}})
        return describe_encoder(module, HuggingFaceLayout(), heads, fresh, "pooler")

    def _build_pooled(self, config: PreTrainedConfig, num_labels: int) -> Network:
        pooling = "mean" if self.pooling == "auto" else self.pooling
        with access_hub("model", self.name, HUB_FIX):
            encoder, missing = load_encoder(self.name, config, self.dtype, revision=self.revision)
        return build_pooled_network(
            encoder, num_labels, pooling, self.used_window_pooling, self.dropout, missing
        )

    def _read_config(self) -> PreTrainedConfig:
        config = load_config(self.name, self.revision)
        if isinstance(config, AnyMambaConfig):
            raise UserError(
                f"model=encoder does not support '{self.name}', a '{config.model_type}' model",
                where="model.name",
                fix=f"use model={config.model_type} model.name={self.name}",
            )
        if self.dropout is not None:
            set_dropout(config, self.dropout, self.name)
        return config
