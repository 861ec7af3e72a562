"""How kernels are compiled, and numba's cache of them on disk: dropped when out of date."""

from __future__ import annotations

import contextlib
import logging
import time
from pathlib import Path
from types import FunctionType

from numba import njit

log = logging.getLogger(__name__)

OPS = Path(__file__).resolve().parents[1]

# Seconds after which nobody writes to a temporary file of numba any more.
LEFT_OVER = 3600.0


def _probe() -> None:
    """Give numba a function to find a cache folder for."""


def _cache_folder(sources: Path) -> Path:
    """Return where numba caches kernels of a source folder; RuntimeError where it cannot."""
    # numba derives the cache folder from the file that a function was written in.
    code = _probe.__code__.replace(co_filename=str(sources / "__init__.py"))
    return Path(njit(cache=True)(FunctionType(code, {})).stats.cache_path)


def _drop_stale(newest: float, cache: Path) -> None:
    """Remove kernels older than the newest source, and what a crash has left.

    numba compares a kernel with its own file only. It writes an index before the code that the
    index names: if it is killed in between, code of that name from before a change would be run.

    Args:
        newest: modification time of the newest source, seconds since the epoch.
        cache: numba's cache folder of one source folder.
    """
    for file in cache.glob("*.nb*"):
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
    """Drop stale kernels; return whether kernels can be cached on disk."""
    sources = list(OPS.rglob("*.py"))
    newest = max(path.stat().st_mtime for path in sources)
    try:
        for source_folder in {path.parent for path in sources}:
            _drop_stale(newest, _cache_folder(source_folder))
    except (RuntimeError, OSError) as error:
        log.warning(
            "compiled kernels cannot be cached on disk, so each process compiles them again; set "
            "NUMBA_CACHE_DIR to a folder that can be written: %s", error,
        )  # fmt: skip
        return False
    return True


def folder() -> Path | None:
    """Return the parent of the cache folders, or None if no kernel can be cached."""
    return _cache_folder(OPS).parent if CACHED else None


CACHED = _prepare()
OPTIONS = {"cache": CACHED, "nogil": True, "error_model": "numpy"}
