"""Store the activations of all reviews on disk as one memory-mapped array.

The array contains the vectors of all reviews in order, without padding. A `.json` file contains the
checksum of the array. The `.json` file is written last, so an array without one is incomplete.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import shutil
import time
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from filelock import AcquireReturnProxy, Timeout

from kinopoisk_ft.errors import UserError
from kinopoisk_ft.files import (
    get_cache_dir,
    lacks_locks,
    make_lock,
    sync_to_disk,
    write_atomically,
)

log = logging.getLogger(__name__)

# Version of the file format. It is hashed into the folder name, so a new version uses new folders.
VERSION = "1"
# Name of the folder of the activations in the cache folder.
FOLDER = "hidden"
# Bytes that stay free on the disk for checkpoints, the model folder and the MLflow store.
MARGIN = 2**30


class CachedActivations:
    """Cached activations of N reviews on disk.

    For review i, counted from 0, `activations[i]` has the shape (lengths[i], width). If reviews are
    divided into windows, each window counts as a review here.

    Args:
        file: path of the array, with the suffix `.npy`.
        lengths: (N,), number of vectors of each review.
        width: size of a vector.
        dtype: float32 or float16.
    """

    def __init__(self, file: Path, lengths: np.ndarray, width: int, dtype: np.dtype[Any]) -> None:
        self.file, self.card = file, file.with_suffix(".json")
        # `starts` has the index of the first vector of each review, (N,).
        self.lengths, self.starts = lengths, np.cumsum(lengths) - lengths
        self.shape, self.dtype = (int(lengths.sum()), width), dtype

    def __getitem__(self, row: int) -> np.ndarray:
        start = int(self.starts[row])
        # This is a view of the memory map, so nothing is copied.
        found: np.ndarray = self._array[start : start + int(self.lengths[row])]
        return found

    @property
    def nbytes(self) -> int:
        """Return the size of the array in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    def load(self) -> bool:
        """Map the array into memory. Return False if the array is missing or damaged."""
        if not self.card.is_file():
            return False
        try:
            card = json.loads(self.card.read_text("utf-8"))
            self.build_seconds = float(card["build_seconds"])
            self._map()
            if _checksum(self.file) != card["crc32"]:
                raise ValueError("its CRC-32 checksum does not match")
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("%s is damaged and will be rebuilt: %s", self.file, error)
            return False
        return True

    def write(self, blocks: Iterable[tuple[int, np.ndarray]], about: dict[str, Any]) -> None:
        """Write the array and the `.json` file, then map the array into memory.

        Args:
            blocks: pairs of a review number, counted from 0, and the activations of this review.
            about: further entries of the `.json` file, for people to read.

        Raises:
            UserError: the disk is full, or a value is too large for float16.
        """
        started, part = time.perf_counter(), self.file.with_suffix(".part")
        try:
            self._write_array(part, blocks)
            # Without this, the renamed file could be empty after a power loss.
            sync_to_disk(part)
            self.build_seconds = time.perf_counter() - started
            card = {**about, "crc32": _checksum(part), "build_seconds": self.build_seconds}
            os.replace(part, self.file)
            write_atomically(self.card, json.dumps(card, indent=2) + "\n")
        except OSError as error:
            raise UserError(
                f"cannot write the prefix cache: {error}",
                where=str(self.file),
                fix="free disk space, set the environment variable KINOPOISK_FT_CACHE to another "
                "folder, or set trainer.prefix_cache=off",
            ) from error
        finally:
            part.unlink(missing_ok=True)
        self._map()

    def _write_array(self, file: Path, blocks: Iterable[tuple[int, np.ndarray]]) -> None:
        # Do not write through a memory map, because a full disk would then kill the process.
        with file.open("wb") as stream:
            # With this header, `np.load` can map the file into memory.
            header = {"descr": self.dtype.str, "fortran_order": False, "shape": self.shape}
            np.lib.format.write_array_header_1_0(stream, header)
            begin, row_bytes = stream.tell(), self.shape[1] * self.dtype.itemsize
            for row, block in blocks:
                # Reviews arrive in the order of their lengths, so write each one at its own place.
                stream.seek(begin + int(self.starts[row]) * row_bytes)
                stream.write(_convert(block, self.dtype).data)

    def _map(self) -> None:
        self._array = np.load(self.file, mmap_mode="r", allow_pickle=False)
        if (self._array.shape, self._array.dtype) != (self.shape, self.dtype):
            raise ValueError(f"unexpected shape {self._array.shape} or dtype {self._array.dtype}")


def _convert(block: np.ndarray, dtype: np.dtype[Any]) -> np.ndarray:
    # An overflow is reported below, so a warning of NumPy is not needed.
    with np.errstate(over="ignore"):
        converted = np.ascontiguousarray(block, dtype=dtype)
    # If the values were not finite before the conversion, fp32 would not help.
    if np.isinf(converted).any() and np.isfinite(block).all():
        raise UserError(
            f"an activation of {np.abs(block).max():.0f} is too large for fp16",
            where="trainer.prefix_cache",
            fix="set trainer.prefix_cache=fp32",
        )
    return converted


def _checksum(file: Path) -> int:
    # With a memory map, the file may be larger than the memory.
    return zlib.crc32(np.memmap(file, mode="r").data)


def cache_folder(digest: str) -> Path:
    """Return the folder of the prefix cache whose key is `digest`."""
    name = hashlib.sha256(f"{VERSION} {digest}".encode()).hexdigest()[:32]
    return get_cache_dir() / FOLDER / name


def check_space(folder: Path, needed: int) -> None:
    """Raise UserError if the disk lacks space for `needed` bytes and a margin."""
    free = shutil.disk_usage(folder).free
    if needed + MARGIN > free:
        raise UserError(
            f"the prefix cache needs {needed / 2**30:.1f} GiB and a margin of "
            f"{MARGIN / 2**30:.0f} GiB, but only {free / 2**30:.1f} GiB are free",
            where=str(folder),
            fix="free disk space, set the environment variable KINOPOISK_FT_CACHE to a folder on "
            "another disk, reduce data.max_length, set trainer.prefix_cache=fp16 (half the size of "
            "fp32), or set trainer.prefix_cache=off",
        )


def check_locks() -> None:
    """Raise UserError if the folder of the caches cannot be locked."""
    with acquire_lock(get_cache_dir() / FOLDER):
        pass


def acquire_lock(folder: Path) -> AcquireReturnProxy:
    """Lock a folder until the `with` block ends, so that only one job builds the cache.

    Raises:
        UserError: the file system has no locks.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = make_lock(folder / "lock")
    try:
        # Try without waiting, so that the message appears only if this run must wait.
        return lock.acquire(blocking=False)
    except Timeout:
        log.info("waiting for another run that is building the same prefix cache")
        return lock.acquire()
    except OSError as error:
        if not lacks_locks(error):
            raise
        raise UserError(
            f"the prefix cache needs a file system with locks: {error}",
            where=str(folder),
            fix="set the environment variable KINOPOISK_FT_CACHE to a folder on a local disk, or "
            "set trainer.prefix_cache=off",
        ) from error
