"""How kernels are compiled, and numba's cache of them on disk: dropped when out of date."""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path

from numba import njit

log = logging.getLogger(__name__)


def _probe() -> None:
    """Something for numba to find a cache place for."""


def _place() -> Path:
    """Return where numba keeps the kernels of this folder; RuntimeError where it cannot."""
    return Path(njit(cache=True)(_probe).stats.cache_path)


def _drop_stale(sources: Path, kept: Path) -> None:
    """Remove kernels older than a source: numba looks at a kernel's own file only."""
    newest = max(path.stat().st_mtime for path in sources.glob("*.py"))
    for index in kept.glob("*.nbi"):
        with contextlib.suppress(FileNotFoundError):  # another process that starts dropped it
            if index.stat().st_mtime < newest:
                index.unlink()


def _prepare() -> bool:
    """Return whether kernels can be cached: beside the source or in the user's cache."""
    try:
        _drop_stale(Path(__file__).parent, _place())
    except (RuntimeError, OSError) as error:
        log.info("compiled kernels are not kept on disk: %s", error)
        return False
    return True


def folder() -> Path | None:
    """Return where kernels are kept, None where no place can be written."""
    return _place() if CACHED else None


CACHED = _prepare()
OPTIONS = {"cache": CACHED, "nogil": True, "error_model": "numpy"}
