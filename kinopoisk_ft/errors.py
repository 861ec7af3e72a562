"""The one exception that a user is meant to read."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from kinopoisk_ft.text import visible


class UserError(Exception):
    """A mistake that the user can mend: says what was wrong, where, and what to do.

    The command line prints it without a traceback; the traceback goes to the log file.
    """

    def __init__(self, what: str, *, where: str | None = None, fix: str | None = None) -> None:
        self.what, self.where, self.fix = what, where, fix
        lines = [what]
        if where:
            lines.append(f"  where: {where}")
        if fix:
            lines.append(f"  to do: {fix}")
        super().__init__(visible("\n".join(lines)))


def nearest(name: str, valid: Iterable[str]) -> str:
    """Return `did you mean 'x'?` for the closest valid name, else the list of valid names."""
    names = sorted(valid)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    if close:
        return f"did you mean '{close[0]}'?"
    return "valid names: " + ", ".join(names)


class RunError(Exception):
    """A job failed and its message has been shown."""
