"""Hidden states of reviews on disk: one array of all kept tokens, read through a memory map.

A file is whole if its `.json` beside it, written last, has its checksum. Rows are in the order of
the reviews, without padding; where a review begins follows from the lengths.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import time
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from filelock import FileLock, Timeout

from kinopoisk_ft.caches import cache_dir
from kinopoisk_ft.errors import UserError

log = logging.getLogger(__name__)

VERSION = "1"  # of the layout; a change makes new files
MARGIN = 2**30  # bytes left to the rest of a run: checkpoints, the model, the store
CHUNK = 2**24  # bytes read at once for a checksum


class HiddenStates:
    """States of N reviews: `states[i]` is (length of i, width), read from disk when asked for."""

    def __init__(self, file: Path, lengths: np.ndarray) -> None:
        self.array = np.load(file, mmap_mode="r", allow_pickle=False)
        self.ends = np.cumsum(lengths)
        self.lengths = lengths

    def __getitem__(self, row: int) -> np.ndarray:
        end = int(self.ends[row])
        found: np.ndarray = self.array[end - int(self.lengths[row]) : end]
        return found


class HiddenFile:
    """The place of one part's states.

    Args:
        file: where the array is, or will be; ends in `.npy`.
        lengths: states kept of each review, (N,).
        width: size of a state. dtype: float32 or float16.
    """

    def __init__(self, file: Path, lengths: np.ndarray, width: int, dtype: np.dtype[Any]) -> None:
        self.file, self.card = file, file.with_suffix(".json")
        self.lengths, self.width, self.dtype = lengths, width, dtype

    @property
    def bytes(self) -> int:
        """Size of the array."""
        return int(self.lengths.sum()) * self.width * self.dtype.itemsize

    def build_seconds(self) -> float:
        """Return how long the states took to make, whenever that was."""
        return float(json.loads(self.card.read_text("utf-8"))["build_seconds"])

    def open(self) -> HiddenStates | None:
        """Return the states; None where there are none, or (with a warning) none that are whole."""
        if not self.card.is_file():
            return None
        problem = self._problem()
        if problem:
            log.warning("%s is made anew: %s", self.file, problem)
            return None
        return HiddenStates(self.file, self.lengths)

    def _problem(self) -> str | None:
        shape = (int(self.lengths.sum()), self.width)
        try:
            card = json.loads(self.card.read_text("utf-8"))
            array = np.load(self.file, mmap_mode="r", allow_pickle=False)
            if (array.shape, array.dtype) != (shape, self.dtype):
                return f"it holds {array.dtype} {array.shape}"
            if _checksum(self.file) != card["crc32"]:
                return "its checksum is wrong"
            float(card["build_seconds"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            return f"it is damaged ({error})"
        return None

    def write(
        self, blocks: Iterable[tuple[int, np.ndarray]], about: dict[str, Any]
    ) -> HiddenStates:
        """Write (review, its states) pairs, in any order, beside, then rename; the card last.

        Args:
            about: what a person wants to know of the file.

        Raises:
            UserError: the disk is full, or a state is too large for float16.
        """
        started, part = time.perf_counter(), self.file.with_suffix(".part")
        try:
            with part.open("wb") as file:
                self._fill(file, blocks)
                file.flush()
                os.fsync(file.fileno())
            card = {"crc32": _checksum(part), "build_seconds": time.perf_counter() - started}
            os.replace(part, self.file)
            part.write_text(json.dumps({**about, **card}, indent=2) + "\n", encoding="utf-8")
            os.replace(part, self.card)
        except OSError as error:
            raise UserError(
                f"the prefix cache could not be written: {error}",
                where=str(self.file),
                fix="free some space, choose another KINOPOISK_FT_CACHE, "
                "or use trainer.prefix_cache=off",
            ) from error
        finally:
            part.unlink(missing_ok=True)
        return HiddenStates(self.file, self.lengths)

    def _fill(self, file: BinaryIO, blocks: Iterable[tuple[int, np.ndarray]]) -> None:
        shape = (int(self.lengths.sum()), self.width)
        header = {"descr": self.dtype.str, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        begin, ends = file.tell(), np.cumsum(self.lengths)
        for row, block in blocks:
            with np.errstate(over="ignore"):
                kept = np.ascontiguousarray(block, dtype=self.dtype)
            if np.isinf(kept).any() and np.isfinite(block).all():
                raise UserError(
                    f"a hidden state of {np.abs(block).max():.0f} is too large for fp16",
                    where="trainer.prefix_cache",
                    fix="use trainer.prefix_cache=fp32",
                )
            start = int(ends[row] - self.lengths[row])
            file.seek(begin + start * self.width * self.dtype.itemsize)
            file.write(kept.data)


def hidden_folder(digest: str) -> Path:
    """Return the folder for the states that a frozen part gives, by its digest."""
    return cache_dir() / "hidden" / hashlib.sha256(f"{VERSION} {digest}".encode()).hexdigest()[:32]


def check_space(folder: Path, needed: int) -> None:
    """Raise UserError unless `needed` bytes and a margin are free where the folder is."""
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if needed + MARGIN > free:
        raise UserError(
            f"the prefix cache needs {needed / 2**30:.1f} GiB, and {MARGIN / 2**30:.0f} GiB are to "
            f"stay free: there are {free / 2**30:.1f} GiB",
            where=str(folder),
            fix="free some space, set KINOPOISK_FT_CACHE to a folder on another disk, use "
            "trainer.prefix_cache=fp16 (half the size), a smaller data.max_length, or "
            "trainer.prefix_cache=off",
        )


@contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Hold the folder's lock: of jobs that need the same states, one makes them."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / "lock")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        log.info("another run is making this prefix cache: waiting for it")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _checksum(file: Path) -> int:
    found = 0
    with file.open("rb") as stream:
        while chunk := stream.read(CHUNK):
            found = zlib.crc32(chunk, found)
    return found
