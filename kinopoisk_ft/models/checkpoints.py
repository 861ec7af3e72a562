"""Read a checkpoint of Hugging Face's layout: its config, its dropout, and the encoder in it."""

from __future__ import annotations

import logging
from typing import Any

import torch
from transformers import AutoConfig, AutoModel, AutoModelForTextEncoding, PreTrainedConfig
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_TEXT_ENCODING_MAPPING,
    MODEL_MAPPING,
)
from transformers.utils.peft_utils import find_adapter_config_file

from kinopoisk_ft.errors import UserError
from kinopoisk_ft.hub_access import access_hub
from kinopoisk_ft.models.tokenizers import HUB_FIX
from kinopoisk_ft.models.untrusted import refuse_adapter

log = logging.getLogger(__name__)


def load_config(name: str, revision: str | None) -> PreTrainedConfig:
    """Read config.json of a folder or hub repository.

    Raises:
        UserError: it cannot be read, or the place holds an adapter instead of a model.
    """
    with access_hub("model", name, HUB_FIX):
        adapter = find_adapter_config_file(name, revision=revision)
        if adapter is not None:
            refuse_adapter(adapter, name)
        config: PreTrainedConfig = AutoConfig.from_pretrained(
            name, revision=revision, trust_remote_code=False
        )
    for part in configs_of(config):
        pad, rows = getattr(part, "pad_token_id", None), getattr(part, "vocab_size", None)
        if pad is not None and rows is not None and not -rows <= pad < rows:
            # PyTorch builds no embedding with it. The tokenizer's id is written after loading.
            part.pad_token_id = None
    if getattr(config, "attention_type", None) == "block_sparse":
        # BigBird would choose between sparse and full attention by the length of each batch.
        config.attention_type = "original_full"
    return config


def configs_of(config: PreTrainedConfig) -> list[Any]:
    """Return a config and the config of its text part, where that is a separate one."""
    text = config.get_text_config()
    return [config] if text is config else [config, text]


def class_names_of(config: PreTrainedConfig) -> list[str]:
    """Return the names of the classes in the order of their ids, whatever the order in the file."""
    return [name for _, name in sorted((config.id2label or {}).items())]


def check_dropout(dropout: float | None) -> None:
    """Raise UserError for a dropout that is not a probability below 1."""
    if dropout is not None and not 0 <= dropout < 1:
        raise UserError(
            f"model.dropout={dropout}: it must be 0 or more and less than 1", where="model.dropout"
        )


def set_dropout(config: PreTrainedConfig, dropout: float, name: str) -> None:
    """Write a dropout probability into every setting for it that the architecture has.

    Raises:
        UserError: it is not 0, and the architecture has none.
    """
    found = False
    for part in configs_of(config):
        for key in dropout_keys(part):
            setattr(part, key, dropout)
            found = True
    if dropout and not found:
        raise UserError(
            f"model.dropout={dropout}: '{name}' is a '{config.model_type}' model, which has no "
            "dropout",
            where="model.dropout",
            fix="use model.dropout=null or model.dropout=0",
        )


def dropout_keys(config: PreTrainedConfig) -> list[str]:
    """Return the names of an architecture's dropout probabilities, such as `attention_dropout`.

    `classifier_dropout: null` is left out: the classifier then uses `hidden_dropout_prob`. So are
    flags (ESM's `token_dropout`) and LayerDrop, which skips whole layers.
    """
    return [
        key
        for key, value in config.to_dict().items()
        if ("dropout" in key or key.endswith("pdrop"))
        and isinstance(value, int | float)
        and not isinstance(value, bool)
        and hasattr(type(config), key)
    ]


def is_encoder_of_two(config: PreTrainedConfig) -> bool:
    """Return whether `AutoModel` would load more than the encoder: a decoder, too."""
    return config.is_encoder_decoder or _has_text_encoder(config)


def load_encoder(source: str, config: PreTrainedConfig, **options: Any) -> tuple[Any, set[str]]:
    """Load the encoder without a head, and of an encoder-decoder without the decoder.

    Args:
        source: a hub name or folder, of the whole checkpoint or of an encoder that was saved alone.

    Returns:
        The encoder, and the names of its weights that the checkpoint does not have.
    """
    kind: Any = AutoModel
    both = False
    if _has_text_encoder(config):
        kind = AutoModelForTextEncoding  # of T5 and its relatives
    elif config.is_encoder_decoder:
        with torch.device("meta"):
            encoder_kind = type(AutoModel.from_config(config).get_encoder())
        both = config.architectures != [encoder_kind.__name__]
        kind = AutoModel if both else encoder_kind
    model, info = kind.from_pretrained(
        source, config=config, output_loading_info=True, dtype=torch.float32,
        trust_remote_code=False, **options,
    )  # fmt: skip
    missing = set(info["missing_keys"])
    if not both:
        return model, missing
    return model.get_encoder(), {
        name.removeprefix("encoder.") for name in missing if name.startswith("encoder.")
    }


def _has_text_encoder(config: PreTrainedConfig) -> bool:
    """Return whether transformers has a text encoder apart from the whole model, as for T5."""
    kind = type(config)
    return (
        kind in MODEL_FOR_TEXT_ENCODING_MAPPING
        and MODEL_FOR_TEXT_ENCODING_MAPPING[kind] != MODEL_MAPPING[kind]
    )
