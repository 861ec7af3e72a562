"""Prepare texts for a model in the same way in training and in prediction."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import ArrayLike

from kinopoisk_ft.data.cleaning import clean_text
from kinopoisk_ft.data.written_grades import strip_scores
from kinopoisk_ft.errors import UserError, suggest_name

# Maps a number of tokens or characters to the number that the head of a text gets; the tail gets
# the rest. Sun et al. (2019, https://arxiv.org/abs/1905.05583) found 128 + 382 of 510 tokens best:
# a quarter, rounded up.
TRUNCATIONS: dict[str, Callable[[int], int]] = {
    "head": lambda room: room,
    "tail": lambda room: 0,
    "head_tail": lambda room: -(-room // 4),
}


def split_room(room: int, truncation: str) -> tuple[int, int]:
    """Split `room` tokens or characters between the head and the tail of a long text."""
    head = TRUNCATIONS[truncation](room)
    return head, room - head


def cut_text(text: str, characters: int | None, truncation: str) -> str:
    """Cut a text to at most `characters` characters; None keeps the whole text.

    A space, which counts as a character, separates head and tail, so that two halves of words do
    not form a new word.
    """
    if characters is None or len(text) <= characters:
        return text
    head, tail = split_room(characters, truncation)
    if head and tail:
        return f"{text[:head]} {text[len(text) - tail + 1 :]}"
    return text[:head] or text[len(text) - tail :]


@dataclass(frozen=True)
class Preprocessing:
    """Hold the options of preprocessing, which are saved with each model.

    Args:
        max_length: number of tokens that the model reads, special tokens included.
        truncation: one of TRUNCATIONS, the part of a longer text that is kept.
        max_characters: number of characters that every model may read of a text; None for no
            limit.
        strip_scores: whether to remove written grades.
    """

    max_length: int
    truncation: str = "head"
    max_characters: int | None = None
    strip_scores: bool = False

    def __post_init__(self) -> None:
        if self.truncation not in TRUNCATIONS:
            raise UserError(
                f"data.truncation cannot be {self.truncation!r}",
                where="data.truncation",
                fix=suggest_name(str(self.truncation), TRUNCATIONS),
            )

    def clean(self, text: str) -> str:
        """Remove the leading newline and, with `strip_scores`, written grades."""
        text = clean_text(text)
        return strip_scores(text) if self.strip_scores else text

    def cut(self, text: str) -> str:
        """Cut a cleaned text to `max_characters`."""
        return cut_text(text, self.max_characters, self.truncation)

    def texts(self, texts: Iterable[str]) -> list[str]:
        """Cut cleaned texts to `max_characters`."""
        return [self.cut(text) for text in texts]


@dataclass(frozen=True)
class TextCoverage:
    """Count how much of some texts a model reads; special tokens are not counted.

    Args:
        characters, tokens: numbers in the whole texts; 0 tokens for a model without a tokenizer.
        characters_seen, tokens_seen: numbers that remain after truncation.
    """

    characters: int = 0
    characters_seen: int = 0
    tokens: int = 0
    tokens_seen: int = 0

    def __add__(self, other: TextCoverage) -> TextCoverage:
        return TextCoverage(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def metrics(self) -> dict[str, float]:
        """Return the shares that the model reads and the mean length of a token in characters."""
        values = {"characters_seen_share": self.characters_seen / max(1, self.characters)}
        if self.tokens:
            values["tokens_seen_share"] = self.tokens_seen / self.tokens
            values["characters_per_token"] = self.characters / self.tokens
        return values


def compute_truncated_share(characters: ArrayLike, seen: ArrayLike) -> np.ndarray:
    """Compute the share (N,) of each text that truncation removes; 0 for an empty text."""
    whole = np.asarray(characters, dtype=np.float64)
    return (whole - np.asarray(seen)) / np.maximum(whole, 1)
