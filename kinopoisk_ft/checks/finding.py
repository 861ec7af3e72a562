"""Define the result of a check."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from kinopoisk_ft.errors import first_line


@dataclass(frozen=True)
class Finding:
    """The result of checking one package, device, kernel or store.

    Args:
        needed: whether a run with the default config fails if `state` is "missing" or "broken".
        fix: command or instruction that corrects the problem; None if none is needed or known.
        speedup: time of the reference implementation, divided by the time of the kernel. Both times
            include the forward and the backward pass.
    """

    name: str
    # A part is "missing" if it is absent or unsupported, and "broken" if it does not work.
    state: Literal["ok", "missing", "broken"]
    detail: str
    needed: bool = False
    fix: str | None = None
    speedup: float | None = None


def format_error(error: Exception) -> str:
    """Return the type of an exception and the first line of its message."""
    return f"{type(error).__name__}: {first_line(error)}"
