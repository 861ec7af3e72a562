"""Define the result of a check of this machine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """Describe the state of one package, device, kernel or store.

    Args:
        needed: whether a run with the default config fails without it.
        fix: command or instruction that corrects the problem; None if there is none.
        speedup: time of the reference divided by the time of this kernel, for one forward and
            backward pass, measured on this machine.
    """

    name: str
    state: Literal["ok", "missing", "broken"]
    detail: str
    needed: bool = False
    fix: str | None = None
    speedup: float | None = None


def format_error(error: Exception) -> str:
    """Return the type and the first line of an exception."""
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
