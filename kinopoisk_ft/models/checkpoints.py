"""Load the config and the encoder of a checkpoint in Hugging Face format."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForTextEncoding, PreTrainedConfig
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_TEXT_ENCODING_MAPPING,
    MODEL_MAPPING,
)
from transformers.utils.peft_utils import find_adapter_config_file

from kinopoisk_ft.errors import UserError
from kinopoisk_ft.hub_access import access_hub
from kinopoisk_ft.models.frozen_weights import DTYPES, Dtype, store_in_bf16
from kinopoisk_ft.models.hf_configs import PooledConfig
from kinopoisk_ft.models.network import ModelRecipe, Network
from kinopoisk_ft.models.tokenizers import HUB_FIX, check_folder, load_tokenizer
from kinopoisk_ft.models.untrusted import refuse_adapter


@dataclass(kw_only=True, eq=False)
class CheckpointRecipe(ModelRecipe):
    """Base class for models that start from a pretrained checkpoint and a pretrained tokenizer.

    Args:
        name: Hugging Face Hub id or local folder of the checkpoint.
        revision: branch, tag or commit of the checkpoint on the Hub.
        tokenizer: Hub id or local folder of the tokenizer.
        tokenizer_revision: revision of the tokenizer; ignored if `tokenizer` equals `name`.
        text_prefix: default value of `data.text_prefix`; not used in any other way.
    """

    name: str
    revision: str | None
    tokenizer: str
    tokenizer_revision: str | None = None
    text_prefix: str = ""

    def __post_init__(self) -> None:
        check_folder(self.name, "model.name")

    def set_origin(self, network: Network) -> Network:
        """Set `base` and `revision` of a network to the checkpoint of this recipe."""
        # The card stores this path, and later commands may run in another folder.
        network.base = str(Path(self.name).resolve()) if Path(self.name).is_dir() else self.name
        network.revision = self.revision
        return network

    def measure_layers(self) -> tuple[int, int]:
        """Count the blocks, and all weights except embeddings, without loading weights."""
        config = load_config(self.name, self.revision)
        body = build_without_weights(config)
        # An embedding is a lookup without multiplications, so its weights take no time.
        embeddings = sum(
            part.weight.numel() for part in body.modules() if isinstance(part, nn.Embedding)
        )
        weights = sum(parameter.numel() for parameter in body.parameters())
        return config.get_text_config().num_hidden_layers, weights - embeddings

    def load_tokenizer(self, texts: Sequence[str]) -> Any:
        """Load the pretrained tokenizer; `texts` is ignored."""
        # A revision exists only in its own repository.
        own = self.tokenizer == self.name
        return load_tokenizer(self.tokenizer, self.revision if own else self.tokenizer_revision)


def load_config(name: str, revision: str | None) -> PreTrainedConfig:
    """Load the transformers config of a local folder or Hub repository.

    An invalid pad_token_id becomes None, and BigBird's sparse attention becomes full attention.

    Raises:
        UserError: the config cannot be loaded, or belongs to a PEFT adapter or to a classifier with
            this project's head.
    """
    with access_hub("model", name, HUB_FIX):
        # If the name is an adapter, `from_pretrained` would load the config of its base model.
        adapter = find_adapter_config_file(name, revision=revision)
        if adapter is not None:
            refuse_adapter(adapter, name)
        config: PreTrainedConfig = AutoConfig.from_pretrained(
            name, revision=revision, trust_remote_code=False
        )
    if isinstance(config, PooledConfig):
        raise UserError(
            f"'{name}' is a classifier with a head of kinopoisk_ft, not a base model",
            where="model.name",
            fix=f"use its encoder: model.name={name}/encoder, and model.tokenizer={name}",
        )
    for part in list_configs(config):
        pad, rows = getattr(part, "pad_token_id", None), getattr(part, "vocab_size", None)
        if pad is not None and rows is not None and not -rows <= pad < rows:
            # nn.Embedding rejects this padding_idx. `match_tokenizer` sets the right one later.
            part.pad_token_id = None
    if getattr(config, "attention_type", None) == "block_sparse":
        # BigBird chooses sparse or full attention by the padded length of a batch. The logits of a
        # text would then depend on the other texts in the batch.
        config.attention_type = "original_full"
    return config


def list_configs(config: PreTrainedConfig) -> list[Any]:
    """Return a config, followed by its text config if there is one, as in multimodal models."""
    text = config.get_text_config()
    return [config] if text is config else [config, text]


def read_class_names(config: PreTrainedConfig) -> list[str]:
    """Return the class names in a config, in the order of their ids."""
    # config.json may list the classes in any order. The id is the index of the logit.
    return [name for _, name in sorted((config.id2label or {}).items())]


def check_dropout(dropout: float | None) -> None:
    """Raise UserError if `dropout` is a number outside [0, 1)."""
    if dropout is not None and not 0 <= dropout < 1:
        raise UserError(
            f"model.dropout={dropout} is not a valid dropout probability",
            where="model.dropout",
            fix="set model.dropout to a number that is at least 0 and less than 1",
        )


def set_dropout(config: PreTrainedConfig, dropout: float, name: str) -> None:
    """Set all dropout probabilities in a config.

    Raises:
        UserError: `dropout` is greater than 0, but the architecture has no dropout.
    """
    settings = [(part, key) for part in list_configs(config) for key in find_dropout_keys(part)]
    for part, key in settings:
        setattr(part, key, dropout)
    if dropout and not settings:
        raise UserError(
            f"model.dropout={dropout} would have no effect, because '{name}' is a "
            f"'{config.model_type}' model, which has no dropout",
            where="model.dropout",
            fix="set model.dropout=null or model.dropout=0",
        )


def find_dropout_keys(config: PreTrainedConfig) -> list[str]:
    """Return the config keys of dropout probabilities, such as `attention_dropout`.

    Keys with the value None are left out, because a model ignores them and uses another key. Flags,
    such as ESM's `token_dropout`, are also left out.
    """
    return [
        key
        for key, value in config.to_dict().items()
        if ("dropout" in key or key.endswith("pdrop"))
        and isinstance(value, int | float)
        and not isinstance(value, bool)
        and hasattr(type(config), key)
    ]


def has_decoder(config: PreTrainedConfig) -> bool:
    """Return whether `AutoModel` would load a decoder in addition to the encoder."""
    return config.is_encoder_decoder or _has_separate_encoder(config)


def build_without_weights(config: PreTrainedConfig) -> nn.Module:
    """Build the encoder of an architecture on the meta device, which stores no weights."""
    with torch.device("meta"):
        model: Any = AutoModel.from_config(config)
    encoder: nn.Module = model.get_encoder() if has_decoder(config) else model
    return encoder


def load_encoder(
    source: str, config: PreTrainedConfig, dtype: Dtype = "fp32", **options: Any
) -> tuple[Any, set[str]]:
    """Load only the encoder of a checkpoint.

    Args:
        source: Hub id or local folder of a whole checkpoint, or of a saved encoder.
        dtype: how the weights are stored; see `store_in_bf16`.
        options: keyword arguments for `from_pretrained`.

    Returns:
        The encoder, and the names of encoder weights that are missing from the checkpoint.
    """
    model_class: Any = AutoModel
    with_decoder = False
    if _has_separate_encoder(config):
        model_class = AutoModelForTextEncoding
    elif config.is_encoder_decoder:
        # transformers has no auto class for this encoder (an example is BART). A checkpoint that
        # contains only the encoder has the class of the encoder in `architectures`.
        encoder_class = type(build_without_weights(config))
        with_decoder = config.architectures != [encoder_class.__name__]
        model_class = AutoModel if with_decoder else encoder_class
    # By default, transformers would use the dtype of the checkpoint, which may be fp16.
    model, info = model_class.from_pretrained(
        source, config=config, output_loading_info=True, dtype=DTYPES[dtype],
        trust_remote_code=False, **options,
    )  # fmt: skip
    if dtype == "bf16":
        store_in_bf16(model)
    missing = set(info["missing_keys"])
    if not with_decoder:
        return model, missing
    # `missing` lists weights of the whole model. The decoder is not needed.
    return model.get_encoder(), {
        name.removeprefix("encoder.") for name in missing if name.startswith("encoder.")
    }


def build_encoder(config: PreTrainedConfig) -> Any:
    """Build an encoder as in `load_encoder`, but with random weights and without a pooler."""
    if _has_separate_encoder(config):
        encoder = AutoModelForTextEncoding.from_config(config)
    else:
        encoder = AutoModel.from_config(config)
        if config.is_encoder_decoder:
            encoder = encoder.get_encoder()
    encoder.pooler = None
    return encoder


def _has_separate_encoder(config: PreTrainedConfig) -> bool:
    # T5 is an example of an architecture with an encoder-only class.
    # For BERT and other models without a decoder, both mappings contain the same class.
    encoder_class = MODEL_FOR_TEXT_ENCODING_MAPPING.get(type(config), None)
    return encoder_class is not None and encoder_class != MODEL_MAPPING[type(config)]
