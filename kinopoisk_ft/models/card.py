"""Read and write the card of a model folder: its kind, classes and text preprocessing."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import ConfigDict, TypeAdapter

from kinopoisk_ft.errors import UserError
from kinopoisk_ft.models.untrusted import check_contents

CARD = "kinopoisk_ft.json"
FORMAT = 3
# Format 1 stores the encoder in the folder itself; format 3 adds `recipe`.
READABLE_FORMATS = (1, 2, FORMAT)


@dataclass(frozen=True)
class Card:
    """Describe a model folder.

    Args:
        kind: layout of the weights.
        max_length, truncation, max_characters, strip_scores: preprocessing of the texts in
            training, which prediction repeats; the defaults are those of folders that lack the
            last three.
        base: hub name or folder of the base model, for an adapter.
        note: how other tools, which read only the tokenizer's settings, prepare texts differently.
        recipe: options of the model recipe that rebuilds the network, for a layout without a
            config.
    """

    # A card may come from an untrusted folder, so it must have exactly these fields and types.
    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(strict=True, extra="forbid")

    kind: Literal["recipe", "hf", "pooled", "mamba", "tfidf"]
    class_names: list[str]
    max_length: int
    truncation: str = "head"
    max_characters: int | None = None
    strip_scores: bool = False
    pooling: str = ""
    is_peft: bool = False
    base: str | None = None
    revision: str | None = None
    note: str = ""
    recipe: dict[str, Any] | None = None
    format: int = FORMAT

    def write(self, folder: Path) -> None:
        """Write the card into a folder."""
        text = json.dumps(asdict(self), ensure_ascii=False, indent=2)
        (folder / CARD).write_text(text + "\n", encoding="utf-8")


def read_card(folder: Path) -> Card:
    """Read the card of a model folder.

    Raises:
        UserError: the card is missing or malformed, or a link in the folder leads out of it.
    """
    file = folder / CARD
    if not file.is_file():
        raise UserError(
            f"'{folder}' is not a model folder of this project: it has no {CARD}",
            fix="use the folder `model` in the output_dir of a run, or a run id",
        )
    check_contents(folder)
    try:
        card = TypeAdapter(Card).validate_json(file.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(
            f"{CARD} cannot be read: {error}",
            where=str(file),
            fix="copy or download the whole folder again",
        ) from error
    if card.format not in READABLE_FORMATS:
        raise UserError(
            f"the model folder has format {card.format}, and this version reads 1 to {FORMAT}",
            where=str(file),
            fix="use the version of kinopoisk_ft that wrote it",
        )
    return card
