"""Files and folders that a crash leaves whole: with the old content or the new one."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
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


@contextmanager
def whole_folder(folder: Path, last: str) -> Iterator[Path]:
    """Yield a temporary folder; its files then move into `folder`, the one named `last` at the end.

    Whoever reads the folder looks for `last` first. A crash leaves the old files, all new ones, or
    no `last`: never a mixture that can be read. Other files in the folder stay.
    """
    part = beside(folder)
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        yield part
        made = [file for file in part.rglob("*") if file.is_file()]
        for file in made:
            force(file)
        folder.mkdir(exist_ok=True)
        (folder / last).unlink(missing_ok=True)
        force(folder)
        for file in sorted(made, key=lambda file: file == part / last):
            target = folder / file.relative_to(part)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(file, target)
        force(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


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
