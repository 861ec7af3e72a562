"""Long texts in pieces, so that a text of megabytes costs a tokenizer no more than it must.

A piece ends where one space stands between two letters. Tokenizers that split there read a piece
alone as they read it within the text; one that does not is found by a probe and gets whole texts.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

PIECE = 2**13  # characters: thousands of tokens, more than most models read
AT_ONCE = 2**20  # characters in one call: an encoding takes some 300 bytes for each
_GAP = re.compile(r"(?<=[^\W\d_]) (?=[^\W\d_])")
_PROBE = "Кино и вино, the best of films я не видел"

Count = Callable[[Sequence[str]], list[int]]


def pieces(text: str) -> list[str]:
    """Cut a text into pieces of about `PIECE` characters; what has no place to cut stays whole."""
    found, start = [], 0
    while len(text) - start > 2 * PIECE and (gap := _GAP.search(text, start + PIECE)):
        found.append(text[start : gap.start()])
        start = gap.start()
    return [*found, text[start:]]


def reads_apart(tokenizer: Any) -> bool:
    """Whether a tokenizer gives the pieces of a text the tokens that they have within it."""
    if tokenizer.backend_tokenizer.pre_tokenizer is None:
        return False
    cuts = [gap.start() for gap in _GAP.finditer(_PROBE)]
    parts = [part for cut in cuts for part in (_PROBE[:cut], _PROBE[cut:])]
    ids = tokenizer([_PROBE, *parts], add_special_tokens=False)["input_ids"]
    return all(ids[i] + ids[i + 1] == ids[0] for i in range(1, len(ids), 2))


def without_middle(text: str, room: int, count: Count) -> str:
    """Return a text with the same first and last `room` tokens, and more than `room` if it has.

    Args:
        count: gives the number of tokens of each text.
    """
    parts = pieces(text)
    first = _needed(parts, room, count)
    last = _needed(parts[::-1], room, count)
    if first + last >= len(parts):
        return text
    return "".join(parts[:first] + parts[len(parts) - last :])


def _needed(parts: Sequence[str], room: int, count: Count) -> int:
    """Return how many of the first parts have more than `room` tokens; all if it takes them."""
    tokens = 0
    for number, part in enumerate(parts, start=1):
        tokens += count([part])[0]
        if tokens > room:
            return number
    return len(parts)


def groups(texts: Sequence[str]) -> Iterator[list[str]]:
    """Yield texts in order, as many together as have `AT_ONCE` characters, or one that has more."""
    group: list[str] = []
    size = 0
    for text in texts:
        if group and size + len(text) > AT_ONCE:
            yield group
            group, size = [], 0
        group.append(text)
        size += len(text)
    if group:
        yield group
