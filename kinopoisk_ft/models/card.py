"""Read and write the card (`kinopoisk_ft.json`) of a model folder."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import ConfigDict, TypeAdapter

from kinopoisk_ft.errors import UserError
from kinopoisk_ft.models.untrusted import check_contents

CARD = "kinopoisk_ft.json"
FORMAT = 5
# Format 1 has the encoder in the model folder itself, not in a subfolder. Format 3 adds `recipe`,
# format 4 adds windows. Format 5 adds `dtype`, `text_prefix`, and a config.json with which
# transformers can load the classifier.


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
