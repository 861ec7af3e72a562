"""What a run told its tracker, in order, in a file beside its results."""

from __future__ import annotations

import json
import logging
import os
import secrets
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from kinopoisk_ft.errors import UserError
from kinopoisk_ft.tracking.verbs import fault

log = logging.getLogger(__name__)

FOLDER = "tracking"  # in a run's folder
OFFLINE = "offline-"  # starts the id of a run that no store has given one
MOST_WAITING = 10_000  # metric events in memory while the disk takes none
READ = 2**18  # bytes of lines at a time

Event = dict[str, Any]


class EventLog:
    """A file of events, a JSON object a line: `seq` counts them, `time` is in ms since 1970.

    An event outlives the process as soon as it is appended, and a power cut after `sync`. A disk
    that takes no more does not stop who appends: events wait in memory, metrics up to a bound.
    One process at a time writes; the others are told by a lock that dies with it.

    Args:
        file: `<id>.jsonl` in the folder `tracking` of a run's folder.
    """

    def __init__(self, file: Path) -> None:
        self.file, self.id = file, file.stem
        self.folder = file.parent.parent
        self.seq, self.dropped = 0, 0
        self._waiting: deque[Event] = deque()
        self._lock = FileLock(file.with_suffix(".lock"))
        self._busy = threading.Lock()
        self._descriptor: int | None = None
        self._read = 0
        self._full = False

    @classmethod
    def new(cls, folder: Path) -> EventLog:
        """Return the log of a new run in a folder."""
        return cls(folder / FOLDER / f"{secrets.token_hex(12)}.jsonl")

    @property
    def local_id(self) -> str:
        """What the run is called until a store gives it an id."""
        return OFFLINE + self.id

    def open(self, patience: float = 0.0) -> None:
        """Take the right to write; a line that a crash has cut is removed.

        Args:
            patience: seconds to wait for another process that writes.

        Raises:
            UserError: another process writes, or sends what was written.
        """
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(timeout=patience)
            descriptor = os.open(self.file, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        except Timeout as error:
            raise UserError(
                "another process writes the events of this run",
                where=str(self.file),
                fix="wait for its end, or choose another output_dir",
            ) from error
        except OSError as error:
            self._tell(error)
            return
        os.ftruncate(descriptor, self.file.read_bytes().rfind(b"\n") + 1)
        self.seq = max((event["seq"] for event in self.all()), default=0)
        self._descriptor = descriptor

    def append(self, verb: str, **content: Any) -> None:
        """Write an event; never raises for the disk's sake."""
        with self._busy:
            self.seq += 1
            now = int(time.time() * 1000)
            self._waiting.append({"seq": self.seq, "time": now, "verb": verb} | content)
            self._store()

    def sync(self) -> None:
        """Force what is written to disk: a power cut then takes nothing back."""
        with self._busy:
            self._store()
            descriptor = self._descriptor
        if descriptor is not None:  # outside the lock: nobody waits for the disk to append
            with suppress(OSError):  # what could not be written has been told
                os.fsync(descriptor)

    def close(self) -> None:
        """Let others write."""
        with self._busy:
            self._store()
            if self._descriptor is not None:
                os.close(self._descriptor)
            self._descriptor = None
        self._lock.release()

    def discard(self) -> None:
        """Delete the log: its run was not allowed to begin."""
        self.close()
        for suffix in (".jsonl", ".sent.json", ".lock"):
            self.file.with_suffix(suffix).unlink(missing_ok=True)
        with suppress(OSError):  # there may be logs of other runs
            self.file.parent.rmdir()

    def rewind(self) -> None:
        """Read again from the first event."""
        self._read = 0

    def after(self, seq: int) -> list[Event]:
        """Return some of the events that follow `seq` and were not read; empty: there are none."""
        found: list[Event] = []
        with self._busy:
            start = self._read
            for event, end in _events(self.file, start):
                self._read = end
                if event["seq"] > seq:
                    found.append(event)
                if end - start > READ and found:
                    return found
            return found or [event for event in self._waiting if event["seq"] > seq]

    def all(self) -> Iterator[Event]:
        """Yield every event of the file."""
        return (event for event, _ in _events(self.file, 0))

    def waiting(self, seq: int) -> int:
        """Return how many of the events that follow `seq` are in memory alone."""
        return sum(event["seq"] > seq for event in self._waiting)

    def tell_losses(self, seq: int) -> None:
        """Say, at the end, what neither the disk has nor, from `seq` on, a store."""
        if lost := self.waiting(seq) + self.dropped:
            log.error("lost: %d events, which nothing has taken; the disk was full", lost)

    def _store(self) -> None:
        try:
            while self._waiting and self._descriptor is not None:
                _write_line(self._descriptor, self._waiting[0])
                self._waiting.popleft()
        except OSError as error:
            self._tell(error)
        if len(self._waiting) > MOST_WAITING and self._waiting[-1]["verb"] == "metrics":
            self._waiting.pop()
            self.dropped += 1

    def _tell(self, error: OSError) -> None:
        if not self._full:
            log.warning("training goes on, but its metrics cannot be kept on disk: %s", error)
        self._full = True


def event_logs(folder: Path) -> list[EventLog]:
    """Return the logs of all runs in a folder and below, the oldest first."""
    files = [*folder.rglob(f"{FOLDER}/*.jsonl")] if folder.is_dir() else []
    starts = ((start_of(EventLog(file)), file) for file in files)
    return [EventLog(file) for _, file in sorted((s["time"], file) for s, file in starts if s)]


def start_of(events: EventLog) -> Event | None:
    """Return the event that a run's log begins with; None for a log that begins otherwise."""
    first = next(events.all(), None)
    return first if first is not None and first["verb"] == "start" else None


def _write_line(descriptor: int, event: Event) -> None:
    """Write a whole line or nothing, in one call, which no signal can tear."""
    before = os.fstat(descriptor).st_size
    line = (json.dumps(event, ensure_ascii=False) + "\n").encode()
    try:
        if os.write(descriptor, line) != len(line):
            raise OSError("the disk is full")
    except OSError:
        os.ftruncate(descriptor, before)
        raise


def _events(file: Path, start: int) -> Iterator[tuple[Event, int]]:
    """Yield the events from a place of a file on, each with the place where it ends.

    An event that a signal had written twice comes once. A last line that is not whole is left out.
    """
    if not file.is_file():
        return
    last = 0
    before: int | None = None  # lines that were read at an earlier time
    with file.open("rb") as stream:
        begin = stream.seek(start)
        for number, line in enumerate(stream, start=1):
            start += len(line)
            if not line.endswith(b"\n"):
                return
            event, wrong = _parse(line)
            if event is None:
                before = _lines_before(file, begin) if before is None else before
                text = "a damaged line is left out: %s, line %d: %s"
                log.warning(text, file, before + number, wrong)
            elif event["seq"] > last:
                last = event["seq"]
                yield event, start


def _lines_before(file: Path, place: int) -> int:
    with file.open("rb") as stream:
        return stream.read(place).count(b"\n")


def _parse(line: bytes) -> tuple[Event | None, str | None]:
    """Return the event of a line, or None and what is wrong."""
    try:
        event = json.loads(line)
        if b"\\u" in line:  # half a letter, which neither a screen nor a store takes
            json.dumps(event, ensure_ascii=False).encode()
    except UnicodeError:
        return None, "it is no text"
    except (ValueError, RecursionError):
        return None, "it is no JSON that can be read"
    wrong = fault(event)
    return (None, wrong) if wrong else (event, None)
