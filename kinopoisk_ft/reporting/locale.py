"""The report's language: phrases from locale/<language>.yaml, and how numbers are written."""

from __future__ import annotations

import functools
from importlib.resources import files

import yaml

from kinopoisk_ft.errors import UserError, suggest_name
from kinopoisk_ft.reporting.columns import Column
from kinopoisk_ft.statistics.bootstrap import Interval

# Stands for a value that was not measured.
NOTHING = "-"
LANGUAGES = ("en", "ru")
MINUS = "\N{MINUS SIGN}"
EN_DASH = "\N{EN DASH}"
NO_BREAK_SPACE = "\N{NO-BREAK SPACE}"
# Three digits cannot show a smaller p-value.
SMALLEST_P = 0.001
# Counts on an axis are shortened from these sizes on.
SCALES = ((1_000_000_000, "billion"), (1_000_000, "million"), (1_000, "thousand"))


@functools.cache
def phrases(language: str) -> dict[str, str]:
    """Return the phrases of a language by key."""
    file = files("kinopoisk_ft.reporting").joinpath(f"locale/{language}.yaml")
    found: dict[str, str] = yaml.safe_load(file.read_text(encoding="utf-8"))
    return found


class Locale:
    """Phrases by key, and numbers as one language writes them."""

    def __init__(self, language: str) -> None:
        if language not in LANGUAGES:
            fix = suggest_name(language, LANGUAGES)
            raise UserError(f"there is no language '{language}'", where="--language", fix=fix)
        self.language = language

    def __call__(self, key: str, **parts: object) -> str:
        """Return the phrase with its parts filled in."""
        return phrases(self.language)[key].format(**parts)

    def label(self, name: str) -> str:
        """Return the label of a metric or column; its name if the language has none for it."""
        return phrases(self.language).get(name, name)

    def heading(self, column: Column) -> str:
        """Return a column's label with its unit."""
        label = self.label(column.name)
        return f"{label}, {self(f'unit_{column.unit}')}" if column.unit else label

    def number(self, value: float, digits: int, *, signed: bool = False) -> str:
        """Return a fixed-point number: 1,234.50 in English, 1 234,50 in Russian."""
        text = f"{value:{'+' if signed else ''},.{digits}f}".replace("-", MINUS)
        if not float(f"{value:.{digits}f}"):
            text = text.lstrip(f"+{MINUS}")
        if self.language == "ru":
            text = text.replace(",", NO_BREAK_SPACE).replace(".", ",")
        return text

    def score(self, value: float, *, signed: bool = False) -> str:
        """Return an accuracy or an F1 with four digits."""
        return self.number(value, 4, signed=signed)

    def interval(self, found: Interval, *, digits: int = 4, signed: bool = False) -> str:
        """Return the ends of an interval in brackets."""
        low, high = (self.number(end, digits, signed=signed) for end in (found.low, found.high))
        return self("interval", low=low, high=high)

    def p_value(self, p: float) -> str:
        """Return a p-value with three digits; what is smaller than they show is said to be."""
        if p < SMALLEST_P:
            return self("below", value=self.number(SMALLEST_P, 3))
        return self.number(p, 3)

    def range(self, text: str) -> str:
        """Return a range of numbers, `213-540`, with a dash."""
        return text.replace("-", EN_DASH)

    def seconds(self, value: float, *, signed: bool = False) -> str:
        """Return a time with the digits of `time_digits`."""
        return self.number(value, time_digits(value), signed=signed)

    def percent(self, share: float, *, signed: bool = False) -> str:
        """Return a share as a percentage with two significant digits below 10."""
        points = 100 * share
        digits = 0 if abs(points) >= 10 else 1 if abs(points) >= 1 else 2
        space = NO_BREAK_SPACE if self.language == "ru" else ""
        return f"{self.number(points, digits, signed=signed)}{space}%"

    def short(self, value: float) -> str:
        """Return a count as it stands on an axis: 100, 2 K, 10 M."""
        for size, name in SCALES:
            if value >= size:
                return f"{self.plain(value / size)}{NO_BREAK_SPACE}{self(name)}"
        return self.plain(value)

    def plain(self, value: float) -> str:
        """Return a number with as many digits after the point as it needs, two at most."""
        digits = next((d for d in (0, 1) if round(value, d) == value), 2)
        return self.number(value, digits)

    def listed(self, items: list[str]) -> str:
        """Return `a, b and c`."""
        if len(items) < 2:
            return "".join(items)
        return f"{', '.join(items[:-1])} {self('and')} {items[-1]}"


def time_digits(seconds: float) -> int:
    """Return the digits after the point of a time: two below 10 s, else one."""
    return 1 if abs(seconds) >= 10 or not seconds else 2
