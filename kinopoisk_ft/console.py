"""Set up output, log messages and garbage collection of a command."""

from __future__ import annotations

import codecs
import errno
import gc
import io
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, wraps
from typing import TYPE_CHECKING, Any, ClassVar, ParamSpec, TextIO

from kinopoisk_ft.errors import UserError
from kinopoisk_ft.files import DISK_FULL_CODES

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

P = ParamSpec("P")

# Replacements for characters that cp1251 or ASCII lacks. All others are escaped, as in \u0444.
REPLACEMENTS = {
    "±": "+/-", "\N{MINUS SIGN}": "-", "\N{EN DASH}": "-", "\N{EM DASH}": "-", "…": "...",
    "\N{NO-BREAK SPACE}": " ", "×": "x", "→": "->", "≤": "<=", "≥": ">=", "«": '"', "»": '"',
}  # fmt: skip
ERROR_HANDLER = "kinopoisk_ft.plain"
# How many new objects start a garbage collection of each generation.
DEFAULT_THRESHOLDS = gc.get_threshold()


def handle_errors(main: Callable[P, int | None]) -> Callable[P, int]:
    """Wrap a command so that it prints a UserError, and returns an exit code.

    The exit code is 1 after a UserError or if a file cannot be written to a full or read-only disk,
    130 after Ctrl-C, and 0 if the command returns None. Errors in writing to standard output do not
    stop the command. If the reader of a pipe stops early (`| head`), the exit code does not change.
    Other such errors are printed, and the exit code is nonzero.
    """

    @wraps(main)
    def run(*args: P.args, **kwargs: P.kwargs) -> int:
        # If a test or another program calls the command with arguments, do not replace its process.
        if not (args or kwargs):
            _restart_in_utf8()
            _shorten_spinning()
            collect_rarely()
        prepare_output()
        try:
            code = main(*args, **kwargs) or 0
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            code = 1
        except OSError as error:
            if error.errno not in DISK_FULL_CODES:
                raise
            # For a full or read-only disk, the reason and the file are enough.
            where = f"\n  where: {error.filename}" if error.filename else ""
            print(f"error: the output cannot be written: {error.strerror}{where}", file=sys.stderr)
            code = 1
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            # Shells report 128 plus the number of the signal, which is 2 for SIGINT (Ctrl-C).
            code = 130
        finally:
            sys.stdout.flush()
        if _Output.failure:
            print(f"error: the output is incomplete: {_Output.failure}", file=sys.stderr)
            return code or 1
        return code

    return run


def _restart_in_utf8() -> None:
    # LC_ALL=C with PYTHONUTF8=0 selects ASCII, and then Cyrillic paths cannot be read.
    if sys.getfilesystemencoding() == "ascii" and os.environ.get("PYTHONUTF8") != "1":
        # Python reads this variable only when it starts.
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, sys.orig_argv)


def _shorten_spinning() -> None:
    """Let OpenMP's threads sleep earlier while they wait for each other.

    By default, they loop 300,000 times before they sleep. If another process takes one of the
    cores, they wait in this loop for the thread that lost it (benchmarks/results/busy.md).
    """
    # OpenMP reads the variable when PyTorch is imported, so this must come before.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")


def prepare_output() -> None:
    """Let standard output and standard error accept any character, and replace closed streams.

    If a later write to a file or a pipe fails, no exception is raised, and the remaining output is
    discarded (see `handle_errors`). If a write to a terminal or a notebook fails, an exception is
    raised as usual. Repeated calls are safe.
    """
    # If the disk of run.log is full, each message would otherwise print a traceback.
    logging.raiseExceptions = False
    _open_closed_descriptors()
    # A stream is None if its descriptor was closed when Python started.
    sys.stdin = sys.stdin or io.TextIOWrapper(io.BytesIO(), "utf-8")
    sys.stdout = _wrap_stream(sys.stdout, sys.__stdout__)
    sys.stderr = _wrap_stream(sys.stderr, sys.__stderr__)


def _open_closed_descriptors() -> None:
    # Without this, the next file that the process opens could become its standard output.
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            # A new descriptor gets the lowest free number, which is this one.
            os.open(os.devnull, os.O_RDWR)


def _wrap_stream(stream: Any, original: Any) -> TextIO:
    if stream is None:
        return open(os.devnull, "w", encoding="utf-8")
    if stream is original and not stream.isatty():
        # Text in the buffer of the old stream must be written before any new text.
        stream.flush()
        # The original stream owns the descriptor, so the new one must not close it.
        raw = _Output(stream.fileno(), "wb", closefd=False)
        return io.TextIOWrapper(
            io.BufferedWriter(raw), stream.encoding, ERROR_HANDLER,
            line_buffering=stream.line_buffering, write_through=stream.write_through,
        )  # fmt: skip
    if hasattr(stream, "reconfigure"):
        stream.reconfigure(errors=ERROR_HANDLER)
    return stream


class _Output(io.FileIO):
    # The write error to report; a pipe closed by its reader (EPIPE) is not reported.
    failure: ClassVar[str] = ""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            if error.errno != errno.EPIPE:
                _Output.failure = error.strerror or str(error)
            # Restoring the default action of SIGPIPE instead would also end the process when a
            # server closes a connection: https://docs.python.org/3/library/signal.html#note-on-sigpipe
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self.fileno())
            os.close(null)
            # Otherwise, the caller would try to write the same bytes again.
            return len(data)


def _replace_unencodable(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end]
    escaped = (
        REPLACEMENTS.get(c) or c.encode("ascii", "backslashreplace").decode() for c in lacking
    )
    return "".join(escaped), error.end


codecs.register_error(ERROR_HANDLER, _replace_unencodable)


def format_for_terminal(shown: RenderableType, width: int) -> str:
    """Return what rich prints for an object, with colours if standard output is a terminal."""
    console = open_terminal(sys.stdout)
    console.width = width
    with console.capture() as capture:
        console.print(shown)
    return "\n".join(line.rstrip() for line in capture.get().splitlines())


def open_terminal(stream: Any) -> Console:
    """Return a console of rich for a stream.

    If the stream is not a terminal, or the terminal cannot move its cursor, the console writes
    plain text.
    """
    # `--help` needs no rich, which takes 50 ms to import.
    from rich.console import Console

    # Notebooks set FORCE_COLOR, and rich would then treat their output as a terminal.
    can_move = stream.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")
    return Console(file=stream, force_terminal=can_move, highlight=False, markup=False, emoji=False)


def silence_libraries() -> None:
    """Turn off the progress bars and loading messages of libraries."""
    # Libraries that are not imported yet read these variables on import. TF-IDF never imports them.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    if "transformers" in sys.modules:
        import transformers

        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
    if "datasets" in sys.modules:
        import datasets

        datasets.disable_progress_bars()
    logging.getLogger("mlflow.pyfunc").setLevel(logging.WARNING)
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    # PEFT reads this attribute, which transformers has renamed.
    warnings.filterwarnings("ignore", ".*`is_gradient_checkpointing` is deprecated", FutureWarning)
    # MLflow's own classes cause this warning on import. It starts with a color code.
    warnings.filterwarnings("ignore", ".*Any type hint is inferred as AnyType", UserWarning)


@contextmanager
def silence_logs() -> Iterator[None]:
    """Drop all log messages below ERROR inside the `with` block."""
    # `logging` has no public function that returns the level of `logging.disable`.
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(level)


def collect_rarely() -> None:
    """Run garbage collection 100 times less often, until `freeze_imported_objects` is called.

    Imports create about a million objects and almost no garbage. Fewer collections reduce
    the time of all imports by a fifth.
    """
    gc.set_threshold(100 * DEFAULT_THRESHOLDS[0], *DEFAULT_THRESHOLDS[1:])


@cache
def freeze_imported_objects() -> None:
    """Exclude all existing objects from garbage collection.

    Imports create about a million objects. Each full collection would otherwise spend 0.4 s on
    these objects. Only the first call has an effect.
    """
    gc.freeze()
    gc.set_threshold(*DEFAULT_THRESHOLDS)
