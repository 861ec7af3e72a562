"""Write files and folders that a crash leaves whole, and report full disks."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

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


def write_plain(value: Any, file: Path) -> None:
    """Write a value as JSON (numbers keep every bit) and force it to disk."""
    file.write_text(json.dumps(value, ensure_ascii=False) + "\n", encoding="utf-8")
    force(file)


def sha256(file: Path) -> str:
    """Return a file's SHA-256 digest, hex."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
