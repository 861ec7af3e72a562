"""Which part of a text that is too long stays."""

from __future__ import annotations

from collections.abc import Callable

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
