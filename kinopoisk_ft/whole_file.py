"""Files and folders that a crash leaves whole: with the old content or the new one."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from kinopoisk_ft.errors import UserError


def write_whole(file: Path, text: str) -> None:
    """Write a file beside its place, force it to disk, then rename it; its folder is made."""
    file.parent.mkdir(parents=True, exist_ok=True)
    part = beside(file)
    with part.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(part, file)


def force(path: Path) -> None:
    """Force a file, or a folder's list of names, to disk; not for folders on Windows."""
    if os.name == "nt" and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDWR if path.is_file() else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_writable(file: Path, asked_by: str) -> None:
    """Make a file's folder and try to write there; UserError names the option that asks for it."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        beside(file).touch()
        beside(file).unlink()
    except OSError as error:
        raise UserError(
            f"nothing can be written there: {error.strerror}",
            where=str(file),
            fix=f"give {asked_by} a file in a folder that you may write to",
        ) from error


def beside(file: Path) -> Path:
    """Return where a file is written before it is renamed."""
    return file.with_name(file.name + ".part")
