"""Choose writable cache folders."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

from kinopoisk_ft.text import replace_controls
from kinopoisk_ft.training.distributed import torchrun

CACHE_VARIABLE = "KINOPOISK_FT_CACHE"
# Environment variables that set the cache folders of libraries, with their names in ~/.cache.
LIBRARY_VARIABLES = {
    "HF_HOME": "huggingface",
    "MPLCONFIGDIR": "matplotlib",
    "TRITON_CACHE_DIR": "triton",
}

# While this reference exists, the temporary folder is kept. Python deletes the folder at exit.
_temporary: tempfile.TemporaryDirectory[str] | None = None


def get_cache_dir() -> Path:
    """Return the folder $KINOPOISK_FT_CACHE, by default ~/.cache/kinopoisk_ft.

    Raises:
        RuntimeError: the variable is not set, and the user has no home folder.
    """
    return Path(os.environ.get(CACHE_VARIABLE) or Path.home() / ".cache" / "kinopoisk_ft")


def prepare_caches() -> None:
    """Replace cache folders that are not writable with temporary folders, and print a warning.

    A library's folder is only replaced if it does not exist and cannot be created. An existing
    folder may be read-only but contain downloaded models, and a folder that the user set in a
    variable such as HF_HOME is left alone.

    Call this function before importing libraries, because they read their cache settings only on
    import.
    """
    global _temporary
    moved = {}
    try:
        shared = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        if _find_write_error(shared):
            moved = {
                key: name
                for key, name in LIBRARY_VARIABLES.items()
                if not (key in os.environ or (shared / name).is_dir())
            }
        reason = _find_write_error(get_cache_dir())
    except RuntimeError as error:
        moved = {k: name for k, name in LIBRARY_VARIABLES.items() if k not in os.environ}
        reason = str(error)
    if reason:
        moved[CACHE_VARIABLE] = "kinopoisk_ft"
    if not moved:
        return
    _temporary = tempfile.TemporaryDirectory(prefix="kinopoisk_ft_", ignore_cleanup_errors=True)
    os.environ.update({key: str(Path(_temporary.name, name)) for key, name in moved.items()})
    if torchrun.rank() == 0:
        why = f" ({reason})" if reason else ""
        print(
            f"warning: the cache folder cannot be written{why}; cached files are deleted when this "
            f"command ends. To keep them, set {', '.join(sorted(moved))} to writable folders",
            file=sys.stderr,
        )


def _find_write_error(folder: Path) -> str:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return ""
    except OSError as error:
        return replace_controls(f"{folder}: {error.strerror or error}")
