"""Preprocess texts in the same way in training and in prediction."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import ArrayLike

from kinopoisk_ft.data.cleaning import clean_text
from kinopoisk_ft.data.written_grades import strip_scores
from kinopoisk_ft.errors import check_name

# Each function takes the number of tokens or characters to keep, and returns how many of them are
# from the head (start) of a text. The others are from its tail (end). With head_tail, the head gets
# a quarter, rounded up: Sun et al. (2019, https://arxiv.org/abs/1905.05583) found 128 + 382 of 510
# best. With windows, a text is truncated only if it exceeds max_characters or max_windows.
TRUNCATIONS: dict[str, Callable[[int], int]] = {
    "head": lambda room: room,
    "tail": lambda room: 0,
    "head_tail": lambda room: -(-room // 4),
    "windows": lambda room: -(-room // 4),
}


def split_room(room: int, truncation: str) -> tuple[int, int]:
    """Return how many of the `room` tokens or characters to keep at the start and end of a text."""
    head = TRUNCATIONS[truncation](room)
    return head, room - head


def find_omitted(length: int, left: int, right: int, room: int | None, truncation: str) -> range:
    """Return the positions in a tokenized text that truncation omits.

    Args:
        length: number of tokens of the whole text, including the tokens added to it.
        left, right: numbers of tokens added before and after the text; see `count_added_tokens`.
        room: maximum number of text tokens to keep, without added tokens; None for no limit.
        truncation: one of TRUNCATIONS.
    """
    if room is None:
        return range(0)
    head, tail = split_room(room, truncation)
    # The range is empty if the text is not longer than the room.
    return range(left + head, max(left + head, length - right - tail))


@dataclass(frozen=True)
class Preprocessing:
    """The preprocessing options of a model.

    Args:
        max_length: maximum number of tokens of a text, including special tokens. With
            truncation="windows", maximum number of tokens of a window.
        truncation: one of TRUNCATIONS.
        max_characters: maximum number of characters, also for TF-IDF; None for no limit.
        strip_scores: whether to remove grades that are written in a text, such as "8 из 10".
        window_stride, max_windows: see `Windows`; used only with truncation="windows".
        text_prefix: text before each text, or before each of its windows, for tokenization only.
            Its tokens count toward `max_length`, and truncation never removes them.
    """

    max_length: int
    truncation: str = "head"
    max_characters: int | None = None
    strip_scores: bool = False
    window_stride: int | None = None
    max_windows: int | None = None
    text_prefix: str = ""

    def __post_init__(self) -> None:
        check_name(self.truncation, TRUNCATIONS, "data.truncation")

    @property
    def reads_windows(self) -> bool:
        """Return whether long texts are divided into windows."""
        return self.truncation == "windows"

    def clean(self, text: str) -> str:
        """Remove a newline at the start of a text, and written grades if `strip_scores` is set."""
        text = clean_text(text)
        return strip_scores(text) if self.strip_scores else text

    def cut(self, text: str) -> str:
        """Truncate a cleaned text to `max_characters`.

        If both the start and the end of the text are kept, they are joined with a space, so that
        two incomplete words do not form a new word. The space counts as a character.
        """
        if self.max_characters is None or len(text) <= self.max_characters:
            return text
        head, tail = split_room(self.max_characters, self.truncation)
        if head and tail:
            # The tail is one character shorter, because the space counts. It may be empty, and
            # `text[-0:]` would be the whole text, so its start is computed from `len(text)`.
            return f"{text[:head]} {text[len(text) - tail + 1 :]}"
        return text[:head] or text[len(text) - tail :]

    def texts(self, texts: Iterable[str]) -> list[str]:
        """Truncate cleaned texts to `max_characters`."""
        return [self.cut(text) for text in texts]


@dataclass(frozen=True)
class TextCoverage:
    """Numbers of characters and tokens, of one text or of several texts together.

    Special tokens and the prefix are not counted.

    Args:
        characters, tokens: numbers before truncation.
        characters_seen, tokens_seen: numbers after truncation.
    """

    characters: int = 0
    characters_seen: int = 0
    tokens: int = 0
    tokens_seen: int = 0

    def __add__(self, other: TextCoverage) -> TextCoverage:
        return TextCoverage(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def metrics(self) -> dict[str, float]:
        """Return {metric name: value}: the kept fractions, and the characters per token."""
        values = {"characters_seen_share": self.characters_seen / max(1, self.characters)}
        # TF-IDF has no tokens.
        if self.tokens:
            values["tokens_seen_share"] = self.tokens_seen / self.tokens
            values["characters_per_token"] = self.characters / self.tokens
        return values


def compute_truncated_share(characters: ArrayLike, seen: ArrayLike) -> np.ndarray:
    """Return the fraction of characters that truncation removed from each text, (N,)."""
    whole = np.asarray(characters, dtype=np.float64)
    # The maximum avoids 0 / 0 for an empty text.
    return (whole - np.asarray(seen)) / np.maximum(whole, 1)
