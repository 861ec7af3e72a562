"""Find folders for caches: the user's, or temporary ones where those cannot be written."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from kinopoisk_ft.text import visible
from kinopoisk_ft.training.distributed import torchrun

if TYPE_CHECKING:
    import tempfile

OWN = "KINOPOISK_FT_CACHE"
# Libraries whose cache a variable moves: its folder's name below the user's folder of caches.
LIBRARIES = {"HF_HOME": "huggingface", "MPLCONFIGDIR": "matplotlib", "TRITON_CACHE_DIR": "triton"}

_temporary: tempfile.TemporaryDirectory[str] | None = None  # deleted when the process ends


def cache_dir() -> Path:
    """Return the folder of caches: `KINOPOISK_FT_CACHE`, else `~/.cache/kinopoisk_ft`.

    Raises:
        RuntimeError: the user has no home folder.
    """
    return Path(os.environ.get(OWN) or Path.home() / ".cache" / "kinopoisk_ft")


def prepare_caches() -> None:
    """Move caches that cannot be written to a temporary folder, and print so once.

    It has to be called before libraries are imported, which read their variables once. A cache of
    a library that is there stays in use: it may be shared, for reading only.
    """
    global _temporary
    import tempfile

    moved = {}
    try:
        shared = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        if _refusal(shared):
            moved = {
                key: name
                for key, name in LIBRARIES.items()
                if not (key in os.environ or (shared / name).is_dir())
            }
        reason = _refusal(cache_dir())
    except RuntimeError as error:
        moved, reason = {k: v for k, v in LIBRARIES.items() if k not in os.environ}, str(error)
    if reason:
        moved[OWN] = "kinopoisk_ft"
    if not moved:
        return
    _temporary = tempfile.TemporaryDirectory(prefix="kinopoisk_ft_", ignore_cleanup_errors=True)
    os.environ.update({key: str(Path(_temporary.name, name)) for key, name in moved.items()})
    if torchrun.rank() == 0:
        why = f" ({reason})" if reason else ""
        print(
            f"warning: the folder of caches cannot be written{why}: what is cached is deleted when "
            f"this command ends; to keep it, name a folder in {', '.join(sorted(moved))}",
            file=sys.stderr,
        )


def _refusal(folder: Path) -> str:
    """Return why nothing can be written in a folder, "" where it can; the folder is made."""
    import tempfile

    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return ""
    except OSError as error:
        return visible(f"{folder}: {error.strerror or error}")
