"""The card of a model folder: what it holds, and how its texts were prepared."""

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
# In format 1 the encoder lies in the folder itself; format 3 adds `recipe`.
READABLE = (1, 2, FORMAT)


@dataclass(frozen=True)
class Card:
    """What a model folder says of itself.

    max_length, truncation, max_characters and strip_scores are what training did to each text, so
    that prediction does the same; a folder without the last three was trained on the heads. `note`
    says where other tools, which know only the saved tokenizer's settings, treat texts differently.
    `kind` names the layout of the weights; `recipe` holds the options that build the network again
    if the layout has no config of its own.
    """

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
    """Read a folder's card.

    Raises:
        UserError: there is none, it is not ours, or files of the folder lead out of it.
    """
    file = folder / CARD
    if not file.is_file():
        raise UserError(
            f"'{folder}' is not a model folder of this project: it has no {CARD}",
            fix="give the folder `model` inside a run's output_dir, or a run id",
        )
    check_contents(folder)
    try:
        card = TypeAdapter(Card).validate_json(file.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"{CARD} cannot be read: {error}", where=str(file)) from error
    if card.format not in READABLE:
        raise UserError(
            f"the model folder has format {card.format}, this version reads 1 to {FORMAT}",
            where=str(file),
            fix="use the version of kinopoisk_ft that wrote it",
        )
    return card
