"""Standard output and error that never fail a command: any text, any encoding, no reader."""

from __future__ import annotations

import codecs
import errno
import gc
import io
import logging
import os
import sys
from collections.abc import Callable
from functools import cache, wraps
from typing import Any, ClassVar, ParamSpec, TextIO

P = ParamSpec("P")

# Signs of tables and messages that cp1251 or ASCII may lack; others become escapes as \u0444.
PLAIN = {
    "±": "+/-", "\N{MINUS SIGN}": "-", "\N{EN DASH}": "-", "\N{EM DASH}": "-", "…": "...",
    "\N{NO-BREAK SPACE}": " ", "×": "x", "→": "->", "≤": "<=", "≥": ">=", "«": '"', "»": '"',
}  # fmt: skip
ERRORS = "kinopoisk_ft.plain"


def ends_quietly(main: Callable[P, int]) -> Callable[P, int]:
    """Run a command whatever becomes of its output; returns its exit code.

    A reader that goes away, as `head` does, or an output that is closed changes neither the work
    nor the exit code. An output that takes no more for another reason, such as a full disk, is
    reported, and the exit code is then at least 1.
    """

    @wraps(main)
    def run(*args: P.args, **kwargs: P.kwargs) -> int:
        if not (args or kwargs):
            _leave_ascii()
        prepare_output()
        try:
            code = main(*args, **kwargs)
        finally:
            sys.stdout.flush()
        if _Output.failure:
            print(f"error: the output is cut off: {_Output.failure}", file=sys.stderr)
            return code or 1
        return code

    return run


def _leave_ascii() -> None:
    """Start this process again in UTF-8 mode where names of files could only be ASCII.

    That is LC_ALL=C with PYTHONUTF8=0: a Cyrillic path would then be neither read nor recorded.
    """
    if sys.getfilesystemencoding() == "ascii" and os.environ.get("PYTHONUTF8") != "1":
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, sys.orig_argv)


def prepare_output() -> None:
    """Make standard output and error take what is printed, in this process; works repeatedly.

    Streams that a notebook or a test has put in their place only get another treatment of signs
    that their encoding lacks.
    """
    _fill_descriptors()
    sys.stdout = _prepared(sys.stdout, sys.__stdout__)
    sys.stderr = _prepared(sys.stderr, sys.__stderr__)


def _fill_descriptors() -> None:
    """Open closed ones on the null device: the next file would else become standard output."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the system takes the lowest free descriptor


def _prepared(stream: Any, original: Any) -> TextIO:
    if stream is None:  # as Python starts with a closed descriptor, or without a console
        return open(os.devnull, "w", encoding="utf-8")
    if stream is original and not stream.isatty():
        stream.flush()
        raw = _Output(stream.fileno(), "wb", closefd=False)
        return io.TextIOWrapper(
            io.BufferedWriter(raw), stream.encoding, ERRORS,
            line_buffering=stream.line_buffering, write_through=stream.write_through,
        )  # fmt: skip
    if hasattr(stream, "reconfigure"):
        stream.reconfigure(errors=ERRORS)
    return stream


class _Output(io.FileIO):
    """A descriptor that goes on as the null device once nothing more can be written to it.

    SIGPIPE would end the process for a connection that a server closes, too
    (https://docs.python.org/3/library/signal.html#note-on-sigpipe).
    """

    failure: ClassVar[str] = ""  # other than a reader that has gone

    def write(self, data: Any, /) -> int:
        """Write, or drop what nobody can take."""
        try:
            return super().write(data)
        except OSError as error:
            if error.errno != errno.EPIPE:
                _Output.failure = error.strerror or str(error)
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self.fileno())
            os.close(null)
            return len(data)


def _plain(error: UnicodeError) -> tuple[str, int]:
    """Return what stands for signs that an encoding lacks, and where to go on."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    signs = error.object[error.start : error.end]
    escaped = (PLAIN.get(s) or s.encode("ascii", "backslashreplace").decode() for s in signs)
    return "".join(escaped), error.end


codecs.register_error(ERRORS, _plain)


def quiet_libraries() -> None:
    """Turn off progress bars and load reports of transformers, datasets and MLflow.

    What they say of fresh weights is said by the run itself, once and by name.
    """
    import datasets
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    logging.getLogger("mlflow.pyfunc").setLevel(logging.WARNING)
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")


@cache
def spare_libraries() -> None:
    """Let the collector pass over what imports left, once in a process.

    A million objects that live as long as the process take it 0.4 s each time.
    """
    gc.freeze()
