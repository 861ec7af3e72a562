"""What a check of this machine found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Args:
        needed: a run with the default config fails without it.
        fix: the line that would mend it; None where all is well or nothing helps.
        speedup: how many times as fast as the definition, forward and backward, measured here.
    """

    name: str
    state: Literal["ok", "missing", "broken"]
    detail: str
    needed: bool = False
    fix: str | None = None
    speedup: float | None = None


def told(error: Exception) -> str:
    """Return an exception on one line."""
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
