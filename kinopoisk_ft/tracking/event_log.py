"""Append what a run records to a JSONL file beside its results, and read it again.

Each line is a JSON object with `seq` (1, 2, ...), `time` (ms since 1970), `verb`, and the fields of
that verb. `<id>.sent.json` beside the log holds how much of it an MLflow store already has.
"""

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
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from kinopoisk_ft.errors import UserError

log = logging.getLogger(__name__)

# The folder of the logs in a run's folder.
FOLDER = "tracking"
# The id of a run begins like this until a store has assigned one.
OFFLINE = "offline-"
# Events per read. Training waits for the read to end when it appends an event.
MAX_READ = 1_000

Event = dict[str, Any]

OPTIONAL_TEXT = (str, type(None))
# A log may be damaged or come from someone else, so every field is checked when it is read.
# Values of dicts and lists are numbers for metrics and text for the other verbs.
FIELDS: dict[str, dict[str, Any]] = {
    "start": {
        "name": str, "tags": dict, "experiment": str,
        "uri": OPTIONAL_TEXT, "artifacts": OPTIONAL_TEXT, "host": OPTIONAL_TEXT,
    },
    "reopen": {},
    "params": {"values": dict},
    "metrics": {"values": dict, "step": int},
    "tags": {"values": dict},
    "artifact": {"path": str},
    "model": {"path": str, "code": str, "class_names": list},
    "finish": {"status": str},
}  # fmt: skip


class EventLog:
    """Write and read the events of one run.

    An event survives the end of the process as soon as `append` returns, and a power cut after
    `sync`. A full disk never stops the training: events wait in memory until they can be written.
    A lock file lets one process at a time write; it is released when that process dies.

    Args:
        file: `tracking/<id>.jsonl` in the run's folder.
    """

    def __init__(self, file: Path) -> None:
        self.file, self.id = file, file.stem
        self.folder = file.parent.parent
        self.seq = 0
        self._waiting: deque[Event] = deque()
        self._lock = FileLock(file.with_suffix(".lock"))
        self._mutex = threading.Lock()
        self._descriptor: int | None = None
        self._reader = Reader(file)
        self._has_warned = False

    @classmethod
    def new(cls, folder: Path) -> EventLog:
        """Return the log of a new run in a folder."""
        return cls(folder / FOLDER / f"{secrets.token_hex(12)}.jsonl")

    @property
    def local_id(self) -> str:
        """The run's id until a store assigns one."""
        return OFFLINE + self.id

    def open(self, patience: float = 0.0) -> None:
        """Lock the log for writing and remove a last line that a crash has cut off.

        Args:
            patience: seconds to wait while another process holds the lock.

        Raises:
            UserError: another process is writing or sending this log.
        """
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(timeout=patience)
            descriptor = os.open(self.file, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        except Timeout as error:
            raise UserError(
                "another process is writing or sending the events of this run",
                where=str(self.file),
                fix="wait until it ends, or choose another output_dir",
            ) from error
        except OSError as error:
            self._warn(error)
            return
        # A line without its end was cut off when the process or the machine died.
        os.ftruncate(descriptor, self.file.read_bytes().rfind(b"\n") + 1)
        self.seq = max((event["seq"] for event in self.events()), default=0)
        self._descriptor = descriptor

    def append(self, verb: str, **fields: Any) -> None:
        """Write an event; never raise because of the disk."""
        with self._mutex:
            self.seq += 1
            now = int(time.time() * 1000)
            self._waiting.append({"seq": self.seq, "time": now, "verb": verb} | fields)
            self._write()

    def sync(self) -> None:
        """Force all events to disk, so that they survive a power cut."""
        with self._mutex:
            self._write()
            descriptor = self._descriptor
        # The mutex is free again here: `append` must not wait for the disk.
        if descriptor is not None:
            with suppress(OSError):
                os.fsync(descriptor)

    def close(self) -> None:
        """Release the log for other processes."""
        with self._mutex:
            self._write()
            if self._descriptor is not None:
                os.close(self._descriptor)
            self._descriptor = None
        self._lock.release()

    def discard(self) -> None:
        """Close and delete the log of a run that could not start."""
        self.close()
        for file in (self.file, state_file(self), self.file.with_suffix(".lock")):
            file.unlink(missing_ok=True)
        # The folder stays if it has logs of other runs.
        with suppress(OSError):
            self.file.parent.rmdir()

    def events(self) -> Iterator[Event]:
        """Yield all events of the file."""
        return iter(Reader(self.file))

    def rewind(self) -> None:
        """Let `read_after` begin again at the first event."""
        self._reader = Reader(self.file)

    def read_after(self, seq: int) -> list[Event]:
        """Return the next events after `seq` that were not read yet; empty if there are none.

        Events that could not be written to the disk come last, from memory.
        """
        with self._mutex:
            new = (event for event in self._reader if event["seq"] > seq)
            return list(islice(new, MAX_READ)) or self.unwritten(seq)

    def unwritten(self, seq: int) -> list[Event]:
        """Return the events after `seq` that the disk has not taken."""
        return [event for event in self._waiting if event["seq"] > seq]

    def _write(self) -> None:
        try:
            while self._waiting and self._descriptor is not None:
                _write_line(self._descriptor, self._waiting[0])
                self._waiting.popleft()
        except OSError as error:
            self._warn(error)

    def _warn(self, error: OSError) -> None:
        if not self._has_warned:
            log.warning("training continues, but its metrics cannot be kept on disk: %s", error)
        self._has_warned = True


class Reader:
    """Iterate over the events of a log file; the next iteration continues where this one ended.

    A damaged line is reported and skipped. A last line without its end is not read yet.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._offset, self._lines, self._seq = 0, 0, 0

    def __iter__(self) -> Iterator[Event]:
        if not self._file.is_file():
            return
        with self._file.open("rb") as stream:
            stream.seek(self._offset)
            for line in stream:
                if not line.endswith(b"\n"):
                    return
                self._offset += len(line)
                self._lines += 1
                try:
                    event = _parse(line)
                except ValueError as error:
                    text = "skipping a damaged line: %s, line %d: %s"
                    log.warning(text, self._file, self._lines, error)
                    continue
                # A signal handler that raises between write and bookkeeping repeats a line.
                if event["seq"] > self._seq:
                    self._seq = event["seq"]
                    yield event


def _write_line(descriptor: int, event: Event) -> None:
    """Write a whole line or nothing, in one system call that no signal can interrupt."""
    before = os.fstat(descriptor).st_size
    line = (json.dumps(event, ensure_ascii=False) + "\n").encode()
    try:
        if os.write(descriptor, line) != len(line):
            raise OSError("the disk is full")
    except OSError:
        os.ftruncate(descriptor, before)
        raise


def _parse(line: bytes) -> Event:
    """Return the event of a line; ValueError says what is wrong with it."""
    try:
        event = json.loads(line)
        # Half a surrogate pair can be neither printed nor stored.
        json.dumps(event, ensure_ascii=False).encode()
    except UnicodeError as error:
        raise ValueError("it is not valid Unicode") from error
    except (ValueError, RecursionError) as error:
        raise ValueError("it is not valid JSON") from error
    if not isinstance(event, dict):
        raise ValueError("it is not a JSON object")
    verb = event.get("verb")
    # A verb of a later version passes here and is refused when it is sent.
    fields = FIELDS.get(verb, {}) if isinstance(verb, str) else {}
    element = (int, float) if verb == "metrics" else str
    for name, kind in ({"seq": int, "time": int, "verb": str} | fields).items():
        value = event.get(name)
        inner = [*value.values()] if isinstance(value, dict) else value
        inner = inner if isinstance(inner, list) else []
        if not _has_type(value, kind) or not all(_has_type(one, element) for one in inner):
            raise ValueError(f"its '{name}' is missing or has the wrong type")
    return event


def _has_type(value: Any, kind: Any) -> bool:
    """Return whether a JSON value has a type; True is not a number, and a store has 64 bits."""
    if isinstance(value, int):
        return not isinstance(value, bool) and isinstance(value, kind) and abs(value) < 2**63
    return isinstance(value, kind)


def find_logs(folder: Path) -> list[EventLog]:
    """Return the logs of all runs in a folder and below, oldest first."""
    files = [*folder.rglob(f"{FOLDER}/*.jsonl")] if folder.is_dir() else []
    starts = ((read_start(EventLog(file)), file) for file in files)
    return [EventLog(file) for _, file in sorted((s["time"], file) for s, file in starts if s)]


def read_start(events: EventLog) -> Event | None:
    """Return the event that begins a run; None if the log does not begin with it."""
    first = next(events.events(), None)
    return first if first is not None and first["verb"] == "start" else None


def read_tags(events: EventLog) -> dict[str, str]:
    """Return the tags that a run has at the end of its log."""
    tags: dict[str, str] = {}
    for event in events.events():
        if event["verb"] in ("start", "tags"):
            tags |= event["tags" if event["verb"] == "start" else "values"]
    return tags


def read_end(events: EventLog) -> str | None:
    """Return the status with which a run ended; None if it is running or its process died."""
    status = None
    for event in events.events():
        if event["verb"] in ("start", "reopen", "finish"):
            status = event.get("status")
    return status


@dataclass
class ReplayState:
    """How much of a log a store has.

    Args:
        uri: the store.
        run_id: the run's id there.
        seq: the last event that was sent.
        refused: events that cannot be sent, by `seq`, with the reason; `sync` tries them again.
    """

    uri: str = ""
    run_id: str = ""
    seq: int = 0
    refused: dict[str, str] = field(default_factory=dict)

    def save(self, events: EventLog) -> None:
        """Write the state atomically; without it a later replay asks the store what it has."""
        file = state_file(events)
        part = file.with_suffix(".part")
        try:
            part.write_text(json.dumps(asdict(self), ensure_ascii=False), encoding="utf-8")
            os.replace(part, file)
        except OSError as error:
            log.debug("%s is not up to date: %s", file, error)


def read_state(events: EventLog) -> ReplayState:
    """Return the state of a log; an empty one if it was never sent or the file is damaged."""
    try:
        state = ReplayState(**json.loads(state_file(events).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, RecursionError):
        return ReplayState()
    types = [type(value) for value in vars(state).values()]
    valid = types == [str, str, int, dict] and {*map(type, state.refused.values())} <= {str}
    return state if valid else ReplayState()


def state_file(events: EventLog) -> Path:
    """Return the file of a log's replay state."""
    return events.file.with_suffix(".sent.json")
