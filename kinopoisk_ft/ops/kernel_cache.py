"""How kernels are compiled, and numba's cache of them on disk: dropped when out of date."""

from __future__ import annotations

import logging
from pathlib import Path

from numba import njit

log = logging.getLogger(__name__)


def _probe() -> None:
    """Something for numba to find a cache place for."""


def _drop_stale(folder: Path) -> None:
    """Remove kernels older than a source here: numba looks at a kernel's own file only."""
    newest = max(path.stat().st_mtime for path in folder.glob("*.py"))
    for index in (folder / "__pycache__").glob("*.nbi"):
        if index.stat().st_mtime < newest:
            index.unlink(missing_ok=True)


def _prepare() -> bool:
    """Return whether kernels can be cached: beside the source or in the user's cache."""
    try:
        njit(cache=True)(_probe)
        _drop_stale(Path(__file__).parent)
    except (RuntimeError, OSError) as error:
        log.info("compiled kernels are not kept on disk: %s", error)
        return False
    return True


def folder() -> Path | None:
    """Return where kernels are kept, None where no place can be written."""
    return Path(njit(cache=True)(_probe).stats.cache_path) if CACHED else None


CACHED = _prepare()
OPTIONS = {"cache": CACHED, "nogil": True, "error_model": "numpy"}
