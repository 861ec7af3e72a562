"""Files that a crash leaves whole: written beside, forced to disk, then renamed."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from kinopoisk_ft.errors import UserError
from kinopoisk_ft.whole_file import force

NO_MORE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
MARGIN = 2**26  # bytes left to the log, the store and the result


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turn a full disk or a folder that cannot be written into a UserError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"the checkpoint could not be written: {error}",
            where=str(folder),
            fix="free some space or mend the rights, and start the same command again: it goes on "
            "from the checkpoint before; or choose another output_dir",
        ) from error


@contextmanager
def told_if_disk_ends(folder: Path) -> Iterator[None]:
    """Turn a disk that takes no more, whatever was written, into a UserError."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        code = error.errno if isinstance(error, OSError) else _system_code(error)
        if code not in NO_MORE:
            raise
        raise UserError(
            f"nothing more could be written: {os.strerror(code)}",
            where=str(getattr(error, "filename", None) or folder),
            fix="free some space and start the same command again: it goes on from its last "
            "checkpoint; or choose another output_dir",
        ) from error


def _system_code(error: SafetensorError) -> int:
    """Return the system's number for an error of safetensors, 0 where there is none."""
    found = re.search(r"os error (\d+)", str(error))
    return int(found[1]) if found else 0


def check_space(folder: Path, needed: int) -> None:
    """Raise OSError unless `needed` bytes and a margin are free where the folder is."""
    free = shutil.disk_usage(folder).free
    if needed + MARGIN > free:
        text = f"it takes {needed / 2**20:.0f} MiB, and {MARGIN / 2**20:.0f} MiB are to stay free"
        raise OSError(f"{text}: there are {free / 2**20:.0f} MiB")


def write_tensors(tensors: Mapping[str, Tensor], file: Path) -> None:
    """Write tensors of any device to a safetensors file and force it to disk."""
    save_file({name: value.contiguous() for name, value in tensors.items()}, file)
    force(file)


def write_plain(value: Any, file: Path) -> None:
    """Write a value as JSON (numbers keep every bit) and force it to disk."""
    file.write_text(json.dumps(value, ensure_ascii=False) + "\n", encoding="utf-8")
    force(file)


def sha256(file: Path) -> str:
    """Return a file's SHA-256 digest, hex."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
