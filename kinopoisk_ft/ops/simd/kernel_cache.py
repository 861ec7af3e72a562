"""Set the compiler options of kernels, and remove outdated kernels from numba's disk cache."""

from __future__ import annotations

import contextlib
import logging
import time
from pathlib import Path
from types import FunctionType

from numba import njit

log = logging.getLogger(__name__)

# Folder with the source code of all kernels.
OPS = Path(__file__).resolve().parents[1]

# Age in seconds after which no process still writes to a temporary file of numba.
_STALE_SECONDS = 3600.0


def _probe() -> None:
    """Do nothing. `_find_cache_folder` copies this function and asks numba where to cache it."""


def _find_cache_folder(sources: Path) -> Path:
    # numba derives the cache folder from the path of the file that defines the function.
    # If no folder is writable, numba raises RuntimeError.
    code = _probe.__code__.replace(co_filename=str(sources / "__init__.py"))
    return Path(njit(cache=True)(FunctionType(code, {})).stats.cache_path)


def _drop_stale(newest: float, cache: Path) -> None:
    """Remove outdated kernels, and files left behind by a crash.

    Numba recompiles a kernel if the file that defines the kernel has changed, but not if an
    imported file has changed. Therefore all cached files older than `newest` are removed.

    newest: modification time of the newest source file, in seconds since the epoch.
    """
    for file in cache.glob("*.nb*"):
        # Another process that starts at the same time may remove the same files.
        with contextlib.suppress(FileNotFoundError):
            status = file.stat()
            age = time.time() - status.st_mtime
            # Another process may still be writing to a recent temporary file. Any other empty file
            # is the result of a power loss, because numba does not fsync its files.
            is_temporary = ".tmp." in file.name
            useless = age > _STALE_SECONDS if is_temporary else not status.st_size
            if status.st_mtime < newest or useless:
                file.unlink()


def _prepare_cache() -> bool:
    sources = list(OPS.rglob("*.py"))
    newest = max(path.stat().st_mtime for path in sources)
    try:
        for source_folder in {path.parent for path in sources}:
            _drop_stale(newest, _find_cache_folder(source_folder))
    except (RuntimeError, OSError) as error:
        log.warning(
            "compiled kernels cannot be cached on disk (%s), so each process compiles them again; "
            "set NUMBA_CACHE_DIR to a writable folder", error,
        )  # fmt: skip
        return False
    return True


def find_folder() -> Path | None:
    """Return the folder of numba's disk cache; None if kernels cannot be cached."""
    return _find_cache_folder(OPS).parent if CACHED else None


CACHED = _prepare_cache()
# With "numpy", a division by zero is not checked. It gives inf or NaN instead of an exception.
OPTIONS = {"cache": CACHED, "nogil": True, "error_model": "numpy"}
