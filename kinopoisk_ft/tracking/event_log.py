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
from bisect import bisect_right
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from operator import itemgetter
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from kinopoisk_ft.errors import UserError
from kinopoisk_ft.files import write_atomically

log = logging.getLogger(__name__)

# The folder of the logs in a run's folder.
FOLDER = "tracking"
# The id of a run begins like this until a store has assigned one.
OFFLINE = "offline-"

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


@dataclass
class ReplayState:
    """How much of a log a store has.

    Args:
        uri: the store.
        run_id: the run's id there.
        seq: the last event that was sent.
        refused: events that could not be sent, by `seq`, with the reason.
    """

    uri: str = ""
    run_id: str = ""
    seq: int = 0
    refused: dict[str, str] = field(default_factory=dict)


class EventLog:
    """The events of one run, in memory and in a file.

    An event survives the end of the process as soon as `append` returns, and a power cut after
    `sync`. A full disk never stops the training: events are written as soon as there is space.
    A lock file lets one process at a time write; it is released when that process dies.

    Args:
        file: `tracking/<id>.jsonl` in the run's folder.

    Attributes:
        events: all events in order; 100,000 take about 60 MB.
        state: how much of them a store has.
    """

    def __init__(self, file: Path) -> None:
        self.file, self.id = file, file.stem
        self.folder = file.parent.parent
        self.state_file = file.with_suffix(".sent.json")
        self._lock = FileLock(file.with_suffix(".lock"))
        self._mutex = threading.Lock()
        self._descriptor: int | None = None
        self._has_warned = False
        self._load()

    @classmethod
    def new(cls, folder: Path) -> EventLog:
        """Return the log of a new run in a folder."""
        return cls(folder / FOLDER / f"{secrets.token_hex(12)}.jsonl")

    @property
    def local_id(self) -> str:
        """The run's id until a store assigns one."""
        return OFFLINE + self.id

    @property
    def seq(self) -> int:
        """The number of the last event; 0 if there is none."""
        return int(self.events[-1]["seq"]) if self.events else 0

    @property
    def ids(self) -> set[str]:
        """The run's local id and the id that a store has assigned."""
        return {self.local_id, self.state.run_id} - {""}

    @property
    def tags(self) -> dict[str, str]:
        """The tags that the run has at the end of the log."""
        tags: dict[str, str] = {}
        for event in self.events:
            if event["verb"] in ("start", "tags"):
                tags |= event["tags" if event["verb"] == "start" else "values"]
        return tags

    @property
    def status(self) -> str | None:
        """The status with which the run ended; None if it is running or its process died."""
        last = [e for e in self.events if e["verb"] in ("start", "reopen", "finish")][-1:]
        return last[0].get("status") if last else None

    def open(self, patience: float = 0.0) -> None:
        """Lock the log for writing and read what other processes have added.

        Args:
            patience: seconds to wait while another process holds the lock.

        Raises:
            UserError: another process is writing or sending this log.
        """
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(timeout=patience)
            self._descriptor = os.open(self.file, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
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
        os.ftruncate(self._descriptor, self.file.read_bytes().rfind(b"\n") + 1)
        self._load()

    def append(self, verb: str, **fields: Any) -> None:
        """Add an event; never raise because of the disk."""
        with self._mutex:
            now = int(time.time() * 1000)
            self.events.append({"seq": self.seq + 1, "time": now, "verb": verb} | fields)
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
        for file in (self.file, self.state_file, self.file.with_suffix(".lock")):
            file.unlink(missing_ok=True)
        # The folder stays if it has logs of other runs.
        with suppress(OSError):
            self.file.parent.rmdir()

    def after(self, seq: int) -> list[Event]:
        """Return the events after `seq`."""
        return self.events[bisect_right(self.events, seq, key=itemgetter("seq")) :]

    def count_lost(self) -> int:
        """Return how many events neither the disk nor a store has."""
        return sum(event["seq"] > self.state.seq for event in self.events[self._written :])

    def save_state(self) -> None:
        """Write the state; if the disk is full, a later replay sends some events again."""
        try:
            write_atomically(self.state_file, json.dumps(asdict(self.state), ensure_ascii=False))
        except OSError as error:
            log.debug("%s is not up to date: %s", self.state_file, error)

    def _load(self) -> None:
        self.events = _read_events(self.file)
        self.state = _read_state(self.state_file)
        self._written = len(self.events)

    def _write(self) -> None:
        try:
            while self._descriptor is not None and self._written < len(self.events):
                _write_line(self._descriptor, self.events[self._written])
                self._written += 1
        except OSError as error:
            self._warn(error)

    def _warn(self, error: OSError) -> None:
        if not self._has_warned:
            log.warning("training continues, but its metrics cannot be kept on disk: %s", error)
        self._has_warned = True


def find_logs(folder: Path, below: bool = False) -> list[EventLog]:
    """Return the logs in a run's folder, oldest first; without logs that have lost their beginning.

    Args:
        below: look in all folders below as well.
    """
    pattern = f"{'**/' if below else ''}{FOLDER}/*.jsonl"
    logs = [EventLog(file) for file in sorted(folder.glob(pattern))]
    complete = [one for one in logs if one.events and one.events[0]["verb"] == "start"]
    return sorted(complete, key=lambda one: one.events[0]["time"])


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


def _read_events(file: Path) -> list[Event]:
    """Return the events of a file; report and skip damaged lines."""
    events: list[Event] = []
    lines = file.read_bytes().split(b"\n") if file.is_file() else []
    # What follows the last line break is a line that is still being written, or nothing.
    for number, line in enumerate(lines[:-1], start=1):
        try:
            event = _parse(line)
        except ValueError as error:
            log.warning("skipping a damaged line: %s, line %d: %s", file, number, error)
            continue
        # A signal handler that raises between write and bookkeeping repeats a line.
        if not events or event["seq"] > events[-1]["seq"]:
            events.append(event)
    return events


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


def _read_state(file: Path) -> ReplayState:
    """Return the state of a log; an empty one if it was never sent or the file is damaged."""
    try:
        state = ReplayState(**json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, RecursionError):
        return ReplayState()
    types = [type(value) for value in vars(state).values()]
    valid = types == [str, str, int, dict] and {*map(type, state.refused.values())} <= {str}
    return state if valid else ReplayState()
