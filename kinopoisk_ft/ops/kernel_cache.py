"""How kernels are compiled, and numba's cache of them on disk: dropped when out of date."""

from __future__ import annotations

import contextlib
import logging
import time
from pathlib import Path

from numba import njit

log = logging.getLogger(__name__)

# Seconds after which nobody writes to a temporary file of numba any more.
LEFT_OVER = 3600.0


def _probe() -> None:
    """Something for numba to find a cache place for."""


def _place() -> Path:
    """Return where numba keeps the kernels of this folder; RuntimeError where it cannot."""
    return Path(njit(cache=True)(_probe).stats.cache_path)


def _drop_stale(sources: Path, kept: Path) -> None:
    """Remove kernels older than a source, and what a crash has left.

    numba looks at a kernel's own file only. It writes an index before the code that the index
    names: if it is killed in between, code of that name from before a change would be run.
    """
    newest = max(path.stat().st_mtime for path in sources.glob("*.py"))
    for file in kept.glob("*.nb*"):
        # Another process that starts may remove the same files.
        with contextlib.suppress(FileNotFoundError):
            found = file.stat()
            # A temporary file may be being written. Of any other, a power loss may leave an empty
            # file: numba forces none to disk.
            is_part = ".tmp." in file.name
            age = time.time() - found.st_mtime
            useless = age > LEFT_OVER if is_part else not found.st_size
            if found.st_mtime < newest or useless:
                file.unlink()


def _prepare() -> bool:
    """Return whether kernels can be cached: beside the source or in the user's cache."""
    try:
        _drop_stale(Path(__file__).parent, _place())
    except (RuntimeError, OSError) as error:
        log.warning(
            "compiled kernels are not kept on disk, and each process compiles them again; name a "
            "folder that can be written in NUMBA_CACHE_DIR: %s", error,
        )  # fmt: skip
        return False
    return True


def folder() -> Path | None:
    """Return where kernels are kept, None where no place can be written."""
    return _place() if CACHED else None


CACHED = _prepare()
OPTIONS = {"cache": CACHED, "nogil": True, "error_model": "numpy"}
