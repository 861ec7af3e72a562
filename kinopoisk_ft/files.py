"""Write files and folders atomically, explain write errors, and choose cache folders."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock
from safetensors import SafetensorError

from kinopoisk_ft.errors import UserError
from kinopoisk_ft.text import replace_controls
from kinopoisk_ft.training.distributed import torchrun

# The folder of this package.
PACKAGE = Path(__file__).resolve().parent
CACHE_VARIABLE = "KINOPOISK_FT_CACHE"
# Error numbers of file systems without locks, such as NFS without a lock service, or Lustre mounted
# without `-o flock`.
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
# Environment variables that set the cache folders of libraries, with their names in ~/.cache.
LIBRARY_VARIABLES = {
    "HF_HOME": "huggingface",
    "MPLCONFIGDIR": "matplotlib",
    "TRITON_CACHE_DIR": "triton",
}

# Keeps the temporary folder until Python exits and deletes it.
_temporary: tempfile.TemporaryDirectory[str] | None = None


def write_atomically(file: Path, text: str) -> None:
    """Write a text file atomically, and sync the file to disk.

    A missing parent folder is created.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    part = temporary_path(file)
    with part.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        # Without this, the renamed file could be empty after a power loss.
        os.fsync(stream.fileno())
    os.replace(part, file)


@contextmanager
def write_folder_atomically(folder: Path, last: str, replaced: Iterable[str]) -> Iterator[Path]:
    """Yield a temporary folder, and move its files into `folder` afterwards.

    Readers must treat `folder` as incomplete if it lacks the file whose name is `last`. The old
    version of this file is deleted first, and the new version is moved last. Readers therefore
    never see a mixture of old and new files, even after a crash.

    Args:
        replaced: glob patterns of the files of an old version, which are deleted even if the new
            version lacks them. Other files in `folder` are kept, and so are all files if `folder`
            has no `last`, because then they are files of the user.
    """
    part = temporary_path(folder)
    # A killed process leaves `part`, and may have deleted `last`.
    has_old = (folder / last).is_file() or part.exists()
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        yield part
        files = [file for file in part.rglob("*") if file.is_file()]
        for file in files:
            sync_to_disk(file)
        folder.mkdir(exist_ok=True)
        # Until `last` is moved, readers treat the folder as incomplete.
        (folder / last).unlink(missing_ok=True)
        sync_to_disk(folder)
        for file in [file for pattern in replaced for file in folder.glob(pattern)]:
            if has_old and not file.is_dir():
                # Two patterns can match the same file.
                file.unlink(missing_ok=True)
        # `last` comes last, because False is sorted before True.
        for file in sorted(files, key=lambda file: file == part / last):
            target = folder / file.relative_to(part)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(file, target)
        sync_to_disk(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def make_lock(file: Path) -> FileLock:
    """Return a lock of a file, which the operating system releases when a process ends or dies.

    If the file system has no locks, `acquire` raises OSError (see `lacks_locks`). By default,
    filelock would instead create a file that remains if the process is killed.
    """
    return FileLock(file, fallback_to_soft=False)


def lacks_locks(error: BaseException) -> bool:
    """Return whether a lock failed because the file system has no locks."""
    return isinstance(error, OSError) and error.errno in NO_LOCKS


def sync_to_disk(path: Path) -> None:
    """Call fsync on a file or folder."""
    # Windows cannot open a folder as a file.
    if os.name == "nt" and path.is_dir():
        return
    # On Windows, fsync requires a descriptor that is open for writing.
    descriptor = os.open(path, os.O_RDWR if path.is_file() else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_writable(file: Path, asked_by: str) -> None:
    """Check that a file can be written, and create the parent folder.

    Args:
        asked_by: the option that sets the file, for the error message.

    Raises:
        UserError: the file cannot be written.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        # A file is written under another name and renamed, which would replace /dev/stdout.
        if file.exists() and not file.is_file():
            kind = "a folder" if file.is_dir() else "a device or a pipe"
            raise OSError(errno.EINVAL, f"it is {kind}")
        # Only the temporary file is created, because `file` may contain an earlier result.
        temporary_path(file).touch()
        temporary_path(file).unlink()
    except OSError as error:
        raise UserError(
            f"the file cannot be written: {error.strerror}",
            where=str(file),
            fix=f"set {asked_by} to a file in a writable folder",
        ) from error


def temporary_path(file: Path) -> Path:
    """Return the path at which a file is written before it is renamed to `file`."""
    return file.with_name(file.name + ".part")


# Error codes for no space, an exceeded quota and a read-only file system.
DISK_FULL_CODES = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
# Bytes that must stay free for the log, the MLflow store and the result.
MARGIN = 2**26


@contextmanager
def wrap_checkpoint_errors(folder: Path) -> Iterator[None]:
    """Raise UserError if the code in the `with` block cannot write a checkpoint."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"the checkpoint could not be written: {error}",
            where=str(folder),
            fix="free disk space or make the folder writable, and run the same command again (it "
            "resumes from the previous checkpoint), or choose another output_dir",
        ) from error


@contextmanager
def wrap_disk_full(folder: Path) -> Iterator[None]:
    """Raise UserError if the code in the `with` block fails on a full or read-only disk."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        code = error.errno if isinstance(error, OSError) else _read_os_code(error)
        if code not in DISK_FULL_CODES:
            raise
        raise UserError(
            f"the disk is full or read-only: {os.strerror(code)}",
            where=str(getattr(error, "filename", None) or folder),
            fix="free disk space and run the same command again (it resumes from the last "
            "checkpoint), or choose another output_dir",
        ) from error


def _read_os_code(error: SafetensorError) -> int:
    # safetensors gives the code only in its message: "No such file or directory (os error 2)".
    match = re.search(r"os error (\d+)", str(error))
    return int(match[1]) if match else 0


def check_space(folder: Path, needed: int) -> None:
    """Raise OSError if writing `needed` bytes would leave less than 64 MiB free on the disk."""
    free = shutil.disk_usage(folder).free
    if needed + MARGIN > free:
        # The callers turn this error into a UserError with `wrap_checkpoint_errors`.
        raise OSError(
            f"{needed / 2**20:.0f} MiB are needed plus a margin of {MARGIN / 2**20:.0f} MiB, "
            f"but only {free / 2**20:.0f} MiB are free"
        )


def write_json_durably(value: Any, file: Path) -> None:
    """Write a value as one line of JSON, and sync the file to disk."""
    file.write_text(json.dumps(value, ensure_ascii=False) + "\n", encoding="utf-8")
    sync_to_disk(file)


def compute_sha256(file: Path) -> str:
    """Return the hexadecimal SHA-256 digest of a file."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def get_cache_dir() -> Path:
    """Return the folder $KINOPOISK_FT_CACHE, by default ~/.cache/kinopoisk_ft.

    Raises:
        RuntimeError: the variable is not set, and the user has no home folder.
    """
    return Path(os.environ.get(CACHE_VARIABLE) or Path.home() / ".cache" / "kinopoisk_ft")


def prepare_caches() -> None:
    """Replace unusable cache folders with temporary folders, and print a warning.

    The cache folder of this package is replaced if it is not writable. The cache folder of a
    library is replaced only if it does not exist and cannot be created. If it exists, it is kept
    even if it is read-only, because it may contain downloaded models. It is also kept if the user
    has set it in a variable such as HF_HOME.

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
    # `Path.home` raises this error if the user has no home folder.
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
        # `os.access` may be wrong, for example on a network file system, so create a file.
        with tempfile.TemporaryFile(dir=folder):
            return ""
    except OSError as error:
        return replace_controls(f"{folder}: {error.strerror or error}")
