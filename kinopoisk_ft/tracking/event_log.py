"""Write and read event logs, which are JSONL files in the folder of a run.

Each line is a JSON object with the keys `seq` (1, 2, ...), `time` (ms since 1970) and `verb` (the
kind of event), and other keys that depend on `verb`. The last key, `crc`, contains the CRC-32 of
the object without this key; logs of earlier versions do not have it. Next to a log `<id>.jsonl`,
the file `<id>.sent.json` records which events an MLflow store already has.
"""

from __future__ import annotations

import json
import logging
import os
import re
import secrets
import threading
import time
import zlib
from bisect import bisect_right
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from operator import itemgetter
from pathlib import Path
from typing import Any

from filelock import Timeout
from pydantic import TypeAdapter

from kinopoisk_ft.errors import UserError
from kinopoisk_ft.files import lacks_locks, make_lock, write_atomically

log = logging.getLogger(__name__)

# Name of the folder inside a run's folder that contains its event logs.
FOLDER = "tracking"
# Prefix of the id of a run until a store has assigned an id.
OFFLINE = "offline-"

Event = dict[str, Any]
CHECKSUM = re.compile(rb', "crc": (\d+)\}$')
OPTIONAL_TEXT = (str, type(None))
# Types of the fields of each verb. They are checked on reading, because a log may be damaged or
# come from someone else. Dicts and lists contain numbers in metrics events, and strings in others.
FIELDS: dict[str, dict[str, Any]] = {
    "start": {
        "name": str, "tags": dict, "experiment": str,
        "uri": OPTIONAL_TEXT, "artifacts": OPTIONAL_TEXT, "host": OPTIONAL_TEXT,
    },
    "reopen": {}, "params": {"values": dict}, "metrics": {"values": dict, "step": int},
    "tags": {"values": dict}, "artifact": {"path": str}, "register": {"name": str},
    "dataset": {"context": str, "values": dict}, "finish": {"status": str},
    "model": {"path": str, "code": str, "class_names": list},
}  # fmt: skip


@dataclass
class ReplayState:
    """A record of the events that were sent to a store.

    Args:
        uri: the URI of the store.
        run_id: the run's id in the store.
        seq: the `seq` of the last event that was sent.
        refused: {`seq` of an event: why the event could not be sent}.
    """

    uri: str = ""
    run_id: str = ""
    seq: int = 0
    refused: dict[str, str] = field(default_factory=dict)


class EventLog:
    """The events of one run, in memory and in a file.

    After `append`, an event survives the death of the process. After `sync`, the event survives a
    power loss. If the disk is full, events are only in memory until a later call can write them. A
    file lock allows one writer at a time.

    Args:
        file: `tracking/<id>.jsonl` in the run's folder.

    Attributes:
        events: all events in order. 100,000 events use about 60 MB of memory.
        state: which of the events have been sent to a store.
    """

    def __init__(self, file: Path) -> None:
        self.file, self.id = file, file.stem
        self.folder, self.state_file = file.parent.parent, file.with_suffix(".sent.json")
        # A separate file, because earlier versions of filelock truncate the file that they lock.
        self._lock = make_lock(file.with_suffix(".lock"))
        # Training, the system monitor and `Delivery` use the log in three threads.
        self._mutex = threading.Lock()
        self._descriptor: int | None = None
        self._has_warned = False
        self._load()

    @classmethod
    def new(cls, folder: Path) -> EventLog:
        """Return an empty log for a new run."""
        # The id finds the run in a store that many machines may share, so it has 96 random bits.
        return cls(folder / FOLDER / f"{secrets.token_hex(12)}.jsonl")

    @property
    def local_id(self) -> str:
        """Return the id that the run has until a store assigns another id."""
        return OFFLINE + self.id

    @property
    def seq(self) -> int:
        """Return the `seq` of the last event; 0 if there are no events."""
        return int(self.events[-1]["seq"]) if self.events else 0

    @property
    def ids(self) -> set[str]:
        """Return all ids of the run: the local id and, if known, the id in the store."""
        return {self.local_id, self.state.run_id} - {""}

    @property
    def tags(self) -> dict[str, str]:
        """Return the current tags of the run."""
        tags: dict[str, str] = {}
        for event in self.events:
            if event["verb"] in ("start", "tags"):
                tags |= event["tags" if event["verb"] == "start" else "values"]
        return tags

    @property
    def last_time(self) -> int:
        """Return the time of the last event. If the process died, nobody knows its end better."""
        return max(int(event["time"]) for event in self.events)

    @property
    def status(self) -> str | None:
        """Return the final status of the run, or None if no end is recorded."""
        # Only `finish` has a status, so a run that was reopened after its end has none.
        last = [e for e in self.events if e["verb"] in ("start", "reopen", "finish")][-1:]
        return last[0].get("status") if last else None

    def open(self, patience: float = 0.0, needs_lock: bool = False) -> None:
        """Lock the log for writing, and read events that other processes have added.

        Args:
            patience: seconds to wait for the lock.
            needs_lock: whether to raise OSError if the log cannot be locked.

        Raises:
            UserError: another process is writing or sending this log.
        """
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            self._acquire_lock(patience, needs_lock)
            # O_APPEND writes at the end of the file, even after `os.ftruncate` has moved that end.
            self._descriptor = os.open(self.file, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        except Timeout as error:
            raise UserError(
                "another process is writing or sending the event log of this run",
                where=str(self.file),
                fix="wait until that process ends, or choose another output_dir",
            ) from error
        except OSError as error:
            if needs_lock:
                self._lock.release()
                raise
            # Without a descriptor, the events stay in memory, and training continues.
            self._warn(error)
            return
        # Remove a truncated last line, which remains if the process or the machine has died.
        os.ftruncate(self._descriptor, self.file.read_bytes().rfind(b"\n") + 1)
        self._load()

    def _acquire_lock(self, patience: float, needs_lock: bool) -> None:
        try:
            self._lock.acquire(timeout=patience)
        except OSError as error:
            # The run has already warned that its folder cannot be locked.
            if needs_lock or not lacks_locks(error):
                raise

    def append(self, verb: str, **fields: Any) -> None:
        """Append an event. A full disk only causes a warning."""
        with self._mutex:
            now = int(time.time() * 1000)
            # `fields` contains another time if the process of the run has died.
            self.events.append({"seq": self.seq + 1, "time": now, "verb": verb} | fields)
            self._write()

    def sync(self) -> None:
        """Write all events to disk, and call fsync."""
        with self._mutex:
            self._write()
            # Another thread may close the log during fsync, so fsync gets its own descriptor.
            descriptor = None if self._descriptor is None else os.dup(self._descriptor)
        # fsync is called without holding the mutex, because `append` must not wait for it.
        if descriptor is not None:
            with suppress(OSError):
                os.fsync(descriptor)
            os.close(descriptor)

    def close(self) -> None:
        """Write all events, close the file, and release the lock."""
        with self._mutex:
            self._write()
            if self._descriptor is not None:
                os.close(self._descriptor)
            self._descriptor = None
        self._lock.release()

    def discard(self) -> None:
        """Close the log and delete its files."""
        self.close()
        for file in (self.file, self.state_file, self.file.with_suffix(".lock")):
            file.unlink(missing_ok=True)
        # This fails, as it should, if the folder contains logs of other runs.
        with suppress(OSError):
            self.file.parent.rmdir()

    def after(self, seq: int) -> list[Event]:
        """Return the events that follow the event with number `seq`."""
        # Skipped damaged lines leave gaps, so the number of an event is not its index.
        return self.events[bisect_right(self.events, seq, key=itemgetter("seq")) :]

    def count_lost(self) -> int:
        """Count the events that are neither on disk nor in a store."""
        return sum(event["seq"] > self.state.seq for event in self.events[self._written :])

    def save_state(self) -> None:
        """Write `state` to disk. If this fails, events are sent again later, which is harmless."""
        try:
            write_atomically(self.state_file, json.dumps(asdict(self.state), ensure_ascii=False))
        except OSError as error:
            log.debug("%s is not up to date: %s", self.state_file, error)

    def _load(self) -> None:
        self.events = _read_events(self.file)
        self.state = _read_state(self.state_file)
        self._written = len(self.events)
        if self.state.seq > self.seq:
            lost = self.state.seq - self.seq
            log.warning("%s has lost its last %d events, which were sent before", self.file, lost)
            # Otherwise, new events with the numbers of the lost ones would never be sent.
            self.state.seq = self.seq

    def _write(self) -> None:
        try:
            # The next attempt continues with the event that failed, so the file stays in order.
            while self._descriptor is not None and self._written < len(self.events):
                _write_line(self._descriptor, self.events[self._written])
                self._written += 1
        except OSError as error:
            self._warn(error)

    def _warn(self, error: OSError) -> None:
        if not self._has_warned:
            log.warning("training continues, but its metrics cannot be written to disk: %s", error)
        self._has_warned = True


def find_logs(folder: Path, below: bool = False) -> list[EventLog]:
    """Return the readable event logs in a run's folder, oldest first.

    Args:
        below: whether to search all subfolders too.
    """
    pattern = f"{'**/' if below else ''}{FOLDER}/*.jsonl"
    logs = [EventLog(file) for file in sorted(folder.glob(pattern))]
    # A log without its first event has no name and no experiment, so it cannot be sent.
    complete = [one for one in logs if one.events and one.events[0]["verb"] == "start"]
    return sorted(complete, key=lambda one: one.events[0]["time"])


def _write_line(descriptor: int, event: Event) -> None:
    before = os.fstat(descriptor).st_size
    body = json.dumps(event, ensure_ascii=False).encode()
    line = body[:-1] + b', "crc": %d}\n' % zlib.crc32(body)
    try:
        # A signal cannot interrupt a single system call halfway through the line.
        if os.write(descriptor, line) != len(line):
            raise OSError("the disk is full")
    except OSError:
        # Otherwise, the next event would be appended to the part that was written.
        os.ftruncate(descriptor, before)
        raise


def _read_events(file: Path) -> list[Event]:
    events: list[Event] = []
    lines = file.read_bytes().split(b"\n") if file.is_file() else []
    has_checksum = False
    # The last element is empty, or a line that is still being written.
    for number, line in enumerate(lines[:-1], start=1):
        try:
            event = _parse(line)
        except ValueError as error:
            log.warning("skipping a damaged line: %s, line %d: %s", file, number, error)
            continue
        had_checksum, has_checksum = has_checksum, CHECKSUM.search(line) is not None
        # Without a checksum, a damaged number looks valid, and would hide the lines that follow.
        if events and event["seq"] <= events[-1]["seq"] and has_checksum and not had_checksum:
            log.warning("skipping a damaged line: %s, line %d: wrong number", file, number - 1)
            events.pop()
        # A line is repeated if a signal handler raised an exception just after it was written.
        if not events or event["seq"] > events[-1]["seq"]:
            events.append(event)
    return events


def _parse(line: bytes) -> Event:
    body, checksum = line, CHECKSUM.search(line)
    if checksum:
        body = line[: checksum.start()] + b"}"
        if zlib.crc32(body) != int(checksum[1]):
            raise ValueError("its checksum differs")
    try:
        event = json.loads(body)
        # A lone surrogate can be neither printed nor stored.
        json.dumps(event, ensure_ascii=False).encode()
    except UnicodeError as error:
        raise ValueError("it is not valid Unicode") from error
    except (ValueError, RecursionError) as error:
        raise ValueError("it is not valid JSON") from error
    if not isinstance(event, dict):
        raise ValueError("it is not a JSON object")
    verb = event.get("verb")
    # A verb of a later version is accepted here, and rejected when the event is sent.
    fields = FIELDS.get(verb, {}) if isinstance(verb, str) else {}
    element = (int, float) if verb == "metrics" else str
    for name, kind in ({"seq": int, "time": int, "verb": str} | fields).items():
        value = event.get(name)
        inner = [*value.values()] if isinstance(value, dict) else value
        inner = inner if isinstance(inner, list) else []
        if not _has_type(value, kind) or not all(_has_type(one, element) for one in inner):
            raise ValueError(f"the field '{name}' is missing or has the wrong type")
    return event


def _has_type(value: Any, kind: Any) -> bool:
    # In Python, a bool is also an int. Ints of more than 64 bits cannot be stored.
    if isinstance(value, int):
        return not isinstance(value, bool) and isinstance(value, kind) and abs(value) < 2**63
    return isinstance(value, kind)


def _read_state(file: Path) -> ReplayState:
    try:
        return TypeAdapter(ReplayState).validate_json(file.read_bytes(), strict=True)
    except (OSError, ValueError):
        # All events are then sent again, which is harmless (see `Replay`).
        return ReplayState()
