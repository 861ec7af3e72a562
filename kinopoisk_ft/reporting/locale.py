"""Provide the phrases and number formats of each language."""

from __future__ import annotations

import functools
from datetime import date
from pathlib import Path

import yaml

from kinopoisk_ft.errors import UserError, suggest_name
from kinopoisk_ft.reporting.columns import TRAINABLE, Column
from kinopoisk_ft.statistics.bootstrap import Interval

# This replaces a value that was not measured.
NOTHING = "-"
LANGUAGES = ("en", "ru")
MINUS = "\N{MINUS SIGN}"
EN_DASH = "\N{EN DASH}"
NO_BREAK_SPACE = "\N{NO-BREAK SPACE}"
# p-values have three decimals. Smaller ones are shown as "<0.001".
SMALLEST_P = 0.001
# Units of large counts, such as M in 10 M.
SCALES = ((1_000_000_000, "billion"), (1_000_000, "million"), (1_000, "thousand"))


# Cached, because each text of the report looks up a phrase.
@functools.cache
def phrases(language: str) -> dict[str, str]:
    """Load the phrases of a language from locale/<language>.yaml."""
    file = Path(__file__).with_name("locale") / f"{language}.yaml"
    found: dict[str, str] = yaml.safe_load(file.read_text("utf-8"))
    return found


class Locale:
    """The phrases and number formats of one language."""

    def __init__(self, language: str) -> None:
        if language not in LANGUAGES:
            what = f"the report is not available in the language '{language}'"
            raise UserError(what, where="--language", fix=suggest_name(language, LANGUAGES))
        self.language = language

    def __call__(self, key: str, **parts: object) -> str:
        """Return the phrase `key`, with its placeholders replaced by `parts`."""
        return phrases(self.language)[key].format(**parts)

    def label(self, name: str) -> str:
        """Return the label of a metric or column, or `name` itself if it has no label."""
        return phrases(self.language).get(name, name)

    def heading(self, column: Column) -> str:
        """Return the label of a column, with the unit if there is one."""
        label = self.label(column.name)
        return f"{label}, {self(f'unit_{column.unit}')}" if column.unit else label

    def number(self, value: float | None, digits: int, *, signed: bool = False) -> str:
        """Format a number with `digits` decimals: 1,234.50 in English, 1 234,50 in Russian.

        None becomes `NOTHING`.
        """
        if value is None:
            return NOTHING
        text = f"{value:{'+' if signed else ''},.{digits}f}".replace("-", MINUS)
        # A number that rounds to zero has no sign.
        if not float(f"{value:.{digits}f}"):
            text = text.lstrip(f"+{MINUS}")
        if self.language == "ru":
            # Commas are replaced first, because the decimal point becomes a comma.
            text = text.replace(",", NO_BREAK_SPACE).replace(".", ",")
        return text

    def score(self, value: float, *, signed: bool = False) -> str:
        """Format a score with four decimals."""
        return self.number(value, 4, signed=signed)

    def interval(self, found: Interval, *, digits: int = 4, signed: bool = False) -> str:
        """Format the bounds of an interval."""
        low, high = (self.number(end, digits, signed=signed) for end in (found.low, found.high))
        return self("interval", low=low, high=high)

    def estimate(self, found: Interval, *, digits: int = 4, signed: bool = False) -> str:
        """Format a mean with its interval, such as "0.9104 [0.8950, 0.9260]"."""
        mean = self.number(found.mean, digits, signed=signed)
        return f"{mean} {self.interval(found, digits=digits, signed=signed)}"

    def p_value(self, p: float) -> str:
        """Format a p-value with three decimals; a value below 0.001 becomes "<0.001"."""
        if p < SMALLEST_P:
            return self("below", value=self.number(SMALLEST_P, 3))
        return self.number(p, 3)

    def p_equation(self, p: float) -> str:
        """Format a p-value as an equation, such as "p = 0.031" or "p < 0.001"."""
        small = p < SMALLEST_P
        value = self.number(SMALLEST_P if small else p, 3)
        return self("p_less" if small else "p_equals", value=value)

    def seconds(self, value: float, *, signed: bool = False) -> str:
        """Format a time in seconds."""
        return self.number(value, time_digits(value), signed=signed)

    def value(self, value: float | None, column: Column, *, signed: bool = False) -> str:
        """Format a value in the number format of a column; None becomes `NOTHING`."""
        if value is not None and column.kind == "seconds":
            return self.seconds(value, signed=signed)
        if value is not None and column.kind == "share":
            return self.percent(value, signed=signed)
        return self.number(value, column.digits if column.kind == "score" else 0, signed=signed)

    def with_unit(self, value: float, column: Column) -> str:
        """Format a value of a column with its unit, if it has one."""
        unit = f"{NO_BREAK_SPACE}{self(f'unit_{column.unit}')}" if column.unit else ""
        return self.value(value, column) + unit

    def setting(self, value: str) -> str:
        """Format the value of a setting: "True" and "False" in words, others unchanged."""
        return {"True": self("yes"), "False": self("no")}.get(value, value)

    def brief(self, value: float | None, column: Column) -> str:
        """Format a value like `self.value`, but shorten parameter counts, for example to 10 M."""
        if value is not None and column.name == TRAINABLE:
            return self.short(value)
        return self.value(value, column)

    def percent(self, share: float, *, signed: bool = False, digits: int | None = None) -> str:
        """Format a fraction as a percentage.

        By default, percentages below 10 have one decimal, and those below 1 have two.
        """
        points = 100 * share
        if digits is None:
            digits = 0 if not points or abs(points) >= 10 else 1 if abs(points) >= 1 else 2
        # In Russian, a space separates a number from the percent sign (GOST 8.417).
        space = NO_BREAK_SPACE if self.language == "ru" else ""
        return f"{self.number(points, digits, signed=signed)}{space}%"

    def short(self, value: float) -> str:
        """Format a count with at most three digits, such as 10 M for ten million."""
        # Round before the unit is chosen, so that 999,999 becomes 1 M and not 1,000 K.
        value = float(f"{value:.3g}")
        for size, name in SCALES:
            if value >= size:
                return f"{self.plain(value / size)}{NO_BREAK_SPACE}{self(name)}"
        return self.plain(value)

    def ticks(self, values: list[float]) -> list[str]:
        """Format the ticks of an axis, all of them with the same number of decimals."""
        # Six decimals hide floating-point errors, as in 0.30000000000000004.
        needed = (f"{value:.6f}".rstrip("0").partition(".")[2] for value in values)
        digits = max(map(len, needed), default=0)
        return [self.number(value, digits) for value in values]

    def plain(self, value: float) -> str:
        """Format a number with at most two decimals."""
        digits = next((d for d in (0, 1) if round(value, d) == value), 2)
        return self.number(value, digits)

    def dates(self, first: date, last: date) -> str:
        """Format a day, or the first and the last of several days."""
        form = "%d.%m.%Y" if self.language == "ru" else "%Y-%m-%d"
        days = dict.fromkeys(day.strftime(form) for day in (first, last))
        return f" {EN_DASH} ".join(days)

    def listed(self, items: list[str]) -> str:
        """Join items, as in "a, b and c"."""
        if len(items) < 2:
            return "".join(items)
        return f"{', '.join(items[:-1])} {self('and')} {items[-1]}"


def time_digits(seconds: float) -> int:
    """Return the number of decimals for a time in seconds."""
    return 1 if abs(seconds) >= 10 or not seconds else 2
