"""Give each approach one colour and one marker in all figures of a report."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

# Colours on a light and on a dark background, with a contrast of at least 3:1. The first five are
# close to the Okabe-Ito palette, which colour-blind readers can distinguish.
COLOURS = (
    "#0072b2", "#d55e00", "#00875f", "#c05a97", "#a06a00", "#6a4fb3", "#8a5a44", "#5f6368",
)  # fmt: skip
DARK_COLOURS = (
    "#56b4e9", "#ff8a3d", "#35c495", "#e39cc7", "#e6b143", "#b09cf0", "#c99b7d", "#b5bac0",
)  # fmt: skip
# Markers of Matplotlib, with similar characters for HTML. There is one marker more than colours, so
# that 72 approaches have different pairs of colour and marker.
MARKERS = {
    "o": "●", "s": "■", "D": "◆", "^": "▲", "v": "▼", "P": "✚", "X": "✖", "<": "◀", ">": "▶",
}  # fmt: skip


@dataclass(frozen=True)
class Look:
    """The colour and the marker of an approach. `number` is the index of the colour."""

    number: int
    marker: str

    @property
    def colour(self) -> str:
        """Return the colour on a light background."""
        return COLOURS[self.number]

    @property
    def character(self) -> str:
        """Return the character that looks like the marker."""
        return MARKERS[self.marker]


Looks = Mapping[str, Look]


def assign_looks(names: Iterable[str]) -> dict[str, Look]:
    """Assign a look to each approach, in the order of the names."""
    markers = list(MARKERS)
    return {
        name: Look(number % len(COLOURS), markers[number % len(markers)])
        for number, name in enumerate(dict.fromkeys(names))
    }
