"""Define the errors that users see as messages without tracebacks."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from importlib import import_module
from typing import Any

from kinopoisk_ft.text import hide_password, replace_controls

# Messages of RuntimeErrors, because only PyTorch's CUDA allocator raises a special exception.
# oneDNN reports a lack of memory as a primitive that it could not create.
OUT_OF_MEMORY = (
    "MPS backend out of memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",
    "could not create a primitive",
)


class UserError(Exception):
    """Raised when the user can correct the problem.

    The command line prints only the message. The traceback is written to the log file.

    Args:
        what: the problem.
        where: the affected file, option or store.
        fix: how the user can correct the problem.
    """

    def __init__(self, what: str, *, where: str | None = None, fix: str | None = None) -> None:
        self.what, self.where, self.fix = what, where, fix
        lines = [what]
        if where:
            lines.append(f"  where: {where}")
        if fix:
            lines.append(f"  to do: {fix}")
        # The parts may quote file names and labels, which can contain control characters.
        super().__init__(replace_controls("\n".join(lines)))


def suggest_name(name: str, valid: Iterable[str]) -> str:
    """Return `did you mean 'x'?` for a similar valid name, or else all valid names."""
    # Names are compared without case, and shown as they are written.
    names = {known.lower(): known for known in sorted(valid)}
    close = difflib.get_close_matches(name.lower(), names, n=1, cutoff=0.5)
    if close:
        return f"did you mean '{names[close[0]]}'?"
    return "valid names: " + ", ".join(names.values())


def check_name(value: object, valid: Iterable[str], option: str) -> None:
    """Raise UserError if the value of an option is not one of the valid names."""
    if value not in (names := list(valid)):
        raise UserError(
            f"{option} cannot be {value!r}", where=option, fix=suggest_name(str(value), names)
        )


def check_positive(value: float | None, option: str) -> None:
    """Raise UserError if the value of an option is less than 1; None is valid."""
    if value is not None and value < 1:
        fix = f"set {option} to a positive number"
        raise UserError(f"{option} cannot be {value!r}", where=option, fix=fix)


def first_line(error: BaseException) -> str:
    """Return the first line of an error message, or the type of an error without a message.

    Passwords in URIs are hidden.
    """
    # MLflow, for example, quotes the URI of the store.
    return hide_password(next(iter(str(error).strip().splitlines()), type(error).__name__))


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an exception means that memory ran out, on any device."""
    # The class is compared by its name, because importing torch would delay every message.
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in OUT_OF_MEMORY)


def install_extra(extra: str) -> str:
    """Return the command that installs an extra (optional dependencies) of this package."""
    # This package is not on PyPI.
    return f"pip install -e '.[{extra}]' (in the checkout)"


def import_extra(module: str, extra: str) -> Any:
    """Import a module that belongs to an extra of this package.

    Raises:
        UserError: the module is not installed.
    """
    try:
        return import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise UserError(
            f"the package {package} is not installed: {error}", fix=install_extra(extra)
        ) from error


class RunError(Exception):
    """Raised when a job has failed and has already printed its error message."""


class LostJobError(RunError):
    """Raised when the process of a job was killed, so that the same command resumes the job."""
