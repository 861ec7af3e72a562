"""Read and write the card (`kinopoisk_ft.json`) of a model folder."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import ConfigDict, TypeAdapter

from kinopoisk_ft.errors import UserError
from kinopoisk_ft.models.untrusted import ADAPTER, check_contents

CARD = "kinopoisk_ft.json"
FORMAT = 5
# Format 1 has the encoder in the model folder itself, not in a subfolder. Format 3 adds `recipe`,
# format 4 adds windows. Format 5 adds `dtype`, `text_prefix`, and a config.json with which
# transformers can load the classifier.

# Subfolders: the encoder of a classifier with this project's head, and the base model of an adapter
# if it has random weights.
ENCODER, BASE = "encoder", "base"
# Files with the words of a tokenizer or of TF-IDF, which may look like paths.
VOCABULARIES = ("tokenizer.json", "vocab.json", "vocab.txt", "merges.txt", "tfidf.json")
# Patterns of the files that this package and other tools read from a model folder.
MODEL_FILES = (
    CARD, ADAPTER, *VOCABULARIES, "config.json", "generation_config.json", "tokenizer_config.json",
    "special_tokens_map.json", "added_tokens.json", "chat_template.jinja", "*.safetensors",
    "*.safetensors.index.json", "*.model", "model.onnx", "model.onnx.data",
)  # fmt: skip
# The same for the subfolder `base`, and for a model folder with its subfolders.
BASE_FILES = [*MODEL_FILES, *(f"{ENCODER}/{name}" for name in MODEL_FILES)]
ALL_FILES = [*BASE_FILES, *(f"{BASE}/{name}" for name in BASE_FILES)]


@dataclass(frozen=True)
class _Version:
    """The field `format` of a card; other fields are ignored."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(strict=True)

    format: int = FORMAT


@dataclass(frozen=True)
class Card:
    """The description of a model folder.

    Args:
        kind: format of the saved weights (`name` of a `Layout`), or "tfidf".
        max_length, truncation, max_characters, strip_scores, window_stride, max_windows,
            text_prefix: see `Preprocessing`. A card of an older format may lack some of these
            options. The model was then trained with their defaults.
        window_pooling: see `WindowPooling`; None if the model reads no windows.
        base: Hugging Face Hub id or local folder of the base model; an adapter is loaded into it.
        dtype: how the weights of an adapter's base model are stored; see `store_in_bf16`.
        note: how other tools preprocess texts differently from training; "" if there is no
            difference.
        recipe: options of a `ModelRecipe`; to load the model, this recipe builds the network
            again. None unless `kind` is "recipe".
    """

    # A card may come from an untrusted folder, so only exactly these fields and types are valid.
    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(strict=True, extra="forbid")

    kind: Literal["recipe", "hf", "pooled", "mamba", "onnx", "tfidf"]
    class_names: list[str]
    max_length: int
    truncation: str = "head"
    max_characters: int | None = None
    strip_scores: bool = False
    window_stride: int | None = None
    max_windows: int | None = None
    text_prefix: str = ""
    window_pooling: str | None = None
    pooling: str = ""
    is_peft: bool = False
    base: str | None = None
    revision: str | None = None
    dtype: Literal["fp32", "bf16"] = "fp32"
    note: str = ""
    recipe: dict[str, Any] | None = None
    format: int = FORMAT

    @property
    def has_own_base(self) -> bool:
        """Whether the folder contains an adapter and, in the subfolder `base`, its base model."""
        return self.is_peft and self.base is None

    @property
    def replaced_files(self) -> list[str]:
        """Patterns of the files of an earlier model that saving this model deletes."""
        # A run saves the base model before the training, and the rest of the folder after it.
        return BASE_FILES if self.has_own_base else ALL_FILES

    def write(self, folder: Path) -> None:
        """Write the card to a folder."""
        # By default, json would escape each letter of a Cyrillic class name.
        text = json.dumps(asdict(self), ensure_ascii=False, indent=2)
        # Callers write the whole folder atomically, so the card itself is written directly.
        (folder / CARD).write_text(text + "\n", encoding="utf-8")


def read_card(folder: Path) -> Card:
    """Read the card of a model folder.

    Raises:
        UserError: the card is missing or invalid, or the folder refers to files outside it.
    """
    file = folder / CARD
    if not file.is_file():
        raise UserError(
            f"'{folder}' is not a model folder of kinopoisk_ft, because it has no {CARD}",
            fix="use the folder `model` in the output_dir of a run, or use a run id",
        )
    # The card may be a symlink itself, so check the folder before reading the card.
    check_contents(folder)
    try:
        text = file.read_bytes()
        # The card of a newer format may have other fields, so check its format first.
        version = TypeAdapter(_Version).validate_json(text).format
        card = TypeAdapter(Card).validate_json(text) if 1 <= version <= FORMAT else None
    # The ValidationError of pydantic is a ValueError.
    except (OSError, ValueError) as error:
        raise UserError(
            f"{CARD} cannot be read: {error}",
            where=str(file),
            fix="copy or download the whole model folder again",
        ) from error
    if card is None:
        raise UserError(
            f"the model folder has format {version}, but this version of kinopoisk_ft reads "
            f"only formats 1 to {FORMAT}",
            where=str(file),
            fix="use the version of kinopoisk_ft that saved the model",
        )
    return card
