"""What happens to a text before a model reads it: the same in training and in prediction."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import ArrayLike

from kinopoisk_ft.data.cleaning import clean_text
from kinopoisk_ft.data.written_grades import strip_scores
from kinopoisk_ft.errors import UserError, suggest_name

# How much of the room the head of a text takes; the tail takes the rest. Sun et al., 2019,
# https://arxiv.org/abs/1905.05583, found 128 + 382 of 510 tokens best: a quarter, rounded up.
TRUNCATIONS: dict[str, Callable[[int], int]] = {
    "head": lambda room: room,
    "tail": lambda room: 0,
    "head_tail": lambda room: -(-room // 4),
}


def ends(room: int, truncation: str) -> tuple[int, int]:
    """Return how many units of a long text's head and of its tail stay: together `room`."""
    head = TRUNCATIONS[truncation](room)
    return head, room - head


def cut_text(text: str, characters: int | None, truncation: str) -> str:
    """Return a text of at most so many characters; None keeps all.

    A space, counted too, stands between head and tail, so that no word is made of two halves.
    """
    if characters is None or len(text) <= characters:
        return text
    head, tail = ends(characters, truncation)
    if head and tail:
        return f"{text[:head]} {text[len(text) - tail + 1 :]}"
    return text[:head] or text[len(text) - tail :]


@dataclass(frozen=True)
class Preprocessing:
    """Its options; a saved model keeps them beside its weights.

    Args:
        max_length: tokens that the model reads, special ones included.
        truncation: one of TRUNCATIONS: what stays of a longer text.
        max_characters: of a text that any model gets, the same for all; None gives all of it.
        strip_scores: take written grades out.
    """

    max_length: int
    truncation: str = "head"
    max_characters: int | None = None
    strip_scores: bool = False

    def __post_init__(self) -> None:
        if self.truncation not in TRUNCATIONS:
            raise UserError(
                f"truncation cannot be {self.truncation!r}",
                where="data.truncation",
                fix=suggest_name(str(self.truncation), TRUNCATIONS),
            )

    def clean(self, text: str) -> str:
        """Return the whole text as it is to be judged."""
        text = clean_text(text)
        return strip_scores(text) if self.strip_scores else text

    def cut(self, text: str) -> str:
        """Return the part of a clean text within `max_characters`."""
        return cut_text(text, self.max_characters, self.truncation)

    def texts(self, texts: Iterable[str]) -> list[str]:
        """Return what a model may read of clean texts, before any tokenizer."""
        return [self.cut(text) for text in texts]


@dataclass(frozen=True)
class Seen:
    """How much of some texts a model reads; special tokens are not counted.

    Args:
        characters, tokens: of the whole texts; no tokens for a model without a tokenizer.
        characters_seen, tokens_seen: of these, what truncation leaves.
    """

    characters: int = 0
    characters_seen: int = 0
    tokens: int = 0
    tokens_seen: int = 0

    def __add__(self, other: Seen) -> Seen:
        return Seen(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def metrics(self) -> dict[str, float]:
        """Return the shares seen, and the characters of a token."""
        found = {"characters_seen_share": self.characters_seen / max(1, self.characters)}
        if self.tokens:
            found["tokens_seen_share"] = self.tokens_seen / self.tokens
            found["characters_per_token"] = self.characters / self.tokens
        return found


def share_cut(characters: ArrayLike, seen: ArrayLike) -> np.ndarray:
    """Return the share (N,) of each of N texts that was not seen; of an empty one, nothing."""
    whole = np.asarray(characters, dtype=np.float64)
    return (whole - np.asarray(seen)) / np.maximum(whole, 1)
