"""Hold the compiler options of kernels, and drop outdated kernels from numba's cache on disk."""

from __future__ import annotations

import contextlib
import logging
import time
from pathlib import Path
from types import FunctionType

from numba import njit

log = logging.getLogger(__name__)

OPS = Path(__file__).resolve().parents[1]

# Seconds after which no process still writes to a temporary file of numba.
_STALE_SECONDS = 3600.0


def _probe() -> None:
    """Give numba a function to find a cache folder for."""


def _find_cache_folder(sources: Path) -> Path:
    """Find the folder where numba caches the kernels of a source folder.

    Raises:
        RuntimeError: numba finds no folder that can be written.
    """
    # numba derives the cache folder from the file that a function was written in.
    code = _probe.__code__.replace(co_filename=str(sources / "__init__.py"))
    return Path(njit(cache=True)(FunctionType(code, {})).stats.cache_path)


def _drop_stale(newest: float, cache: Path) -> None:
    """Remove kernels older than the newest source, and files that a crash has left.

    numba compares a kernel with its own file only, not with the files it imports. It writes an
    index before the code that the index names: if a process is killed in between, the index names
    code from before the change, and numba would run it.

    Args:
        newest: modification time of the newest source, seconds since the epoch.
        cache: numba's cache folder of one source folder.
    """
    for file in cache.glob("*.nb*"):
        # Another process that starts may remove the same files.
        with contextlib.suppress(FileNotFoundError):
            status = file.stat()
            age = time.time() - status.st_mtime
            # A temporary file may still be written to. Any other empty file is left by a power
            # loss, because numba does not force its files to disk.
            is_temporary = ".tmp." in file.name
            useless = age > _STALE_SECONDS if is_temporary else not status.st_size
            if status.st_mtime < newest or useless:
                file.unlink()


def _prepare_cache() -> bool:
    """Drop stale kernels; return whether kernels can be cached on disk."""
    sources = list(OPS.rglob("*.py"))
    newest = max(path.stat().st_mtime for path in sources)
    try:
        for source_folder in {path.parent for path in sources}:
            _drop_stale(newest, _find_cache_folder(source_folder))
    except (RuntimeError, OSError) as error:
        log.warning(
            "compiled kernels cannot be cached on disk, so each process compiles them again; set "
            "NUMBA_CACHE_DIR to a folder that can be written: %s", error,
        )  # fmt: skip
        return False
    return True


def find_folder() -> Path | None:
    """Find the parent of the cache folders; None if kernels cannot be cached."""
    return _find_cache_folder(OPS).parent if CACHED else None


CACHED = _prepare_cache()
OPTIONS = {"cache": CACHED, "nogil": True, "error_model": "numpy"}
