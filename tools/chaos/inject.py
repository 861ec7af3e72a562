"""Inject a fault into the process of a run, before a chosen event of a chosen phase.

An event is a write that Python announces to audit hooks (opening a file for writing, renaming,
deleting, creating a folder), an SQL statement, or the entry into a phase.
"""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, event

from kinopoisk_ft.training.clock import Clock

FIRED, COUNTS = "fired", "counts.json"
# Some faults need a checkpoint. Events that have one are counted a second time, with this suffix.
WITH_CHECKPOINT = ", checkpoint"
# These sections have few events of their own.
MERGED = {"probe": "build", "compile": "build"}
WRITES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.truncate"}
SIGNAL_GAP = 0.05  # seconds between the signals of a burst
LOCK = """
import sqlite3, sys, time
store = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=20)
store.execute("BEGIN EXCLUSIVE")
time.sleep(3)
"""


class Injector:
    """Count the events of each phase, and act once.

    Args:
        folder: the folder of the experiment; only writes below it count.
        phase: act in this phase, which may end with WITH_CHECKPOINT; empty to count only.
        moment: how many events of the phase come first.
        act: what to do.
    """

    def __init__(self, folder: Path, phase: str, moment: int, act: Callable[[], None]) -> None:
        self.folder, self.phase, self.moment, self.act = folder, phase, moment, act
        self.counts: Counter[str] = Counter()
        self.open_phases = ["start"]
        self.fired = False

    def watch(self, work: Callable[[], int]) -> int:
        """Do the work, count its events, and write the counts at its end."""
        self.install()
        code = work()
        self.fired = True
        (self.folder / COUNTS).write_text(json.dumps(self.counts), "utf-8")
        return code

    def install(self) -> None:
        """Start to count."""
        self.count("start")
        section = Clock.section

        @contextmanager
        def watched(clock: Clock, name: str) -> Iterator[None]:
            self.open_phases.append(MERGED.get(name, name))
            self.count(self.open_phases[-1])
            try:
                with section(clock, name):
                    yield
            finally:
                self.open_phases.pop()
                if name == "save":
                    self.open_phases[0] = "record"

        Clock.section = watched  # type: ignore[method-assign]
        event.listen(Engine, "before_cursor_execute", lambda *_: self.count("delivery"))
        sys.addaudithook(self.hear)

    def hear(self, name: str, values: tuple[Any, ...]) -> None:
        """Count an audit event if it is a write below the folder."""
        if self.fired or (name not in WRITES and name != "open"):
            return
        path = values[0]
        if name == "open":
            mode, flags = values[1], values[2]
            reads = not set(mode) & set("wax+") if mode else not flags & (os.O_WRONLY | os.O_RDWR)
            if reads:
                return
        if isinstance(path, bytes):
            path = path.decode(errors="replace")
        if isinstance(path, str) and os.path.abspath(path).startswith(str(self.folder)):
            is_log = "/tracking/" in path or path.endswith((".db", ".db-journal"))
            self.count("delivery" if is_log else self.open_phases[-1])

    def count(self, phase: str) -> None:
        """Count an event, and act if it is the chosen one."""
        if self.fired:
            return
        names = [phase]
        if any(self.folder.glob("run/checkpoints/checkpoint-*[0-9]")):
            names.append(phase + WITH_CHECKPOINT)
        self.counts.update(names)
        if self.phase in names and self.counts[self.phase] > self.moment:
            self.fired = True
            (self.folder / FIRED).touch()
            self.act()


def kill() -> None:
    """End this process like an out-of-memory kill or a power cut."""
    os.kill(os.getpid(), signal.SIGKILL)


def send_burst(number: signal.Signals, count: int, delay: float = 0.0) -> None:
    """Let another process send a signal to this one several times, as an impatient user does."""
    kill = f"kill -{number.name.removeprefix('SIG')} {os.getpid()}"
    script = f"sleep {delay}; for i in $(seq {count}); do {kill}; sleep {SIGNAL_GAP}; done"
    os.posix_spawn("/bin/sh", ["sh", "-c", script], {})


def lock_store(folder: Path) -> None:
    """Let another process lock the SQLite store for a while, as one that writes a lot does."""
    os.posix_spawn(sys.executable, ["python", "-S", "-c", LOCK, str(folder / "mlflow.db")], {})


def delete_store(folder: Path) -> None:
    """Delete the SQLite store."""
    for file in folder.glob("mlflow.db*"):
        file.unlink()


def fill_disk(folder: Path) -> None:
    """Fill the file system of the folder, which `place` has mounted for this experiment."""
    handle = os.open(folder / "filler", os.O_WRONLY | os.O_CREAT)
    block = b"\0" * 2**16
    while block:
        try:
            os.write(handle, block)
        except OSError:
            block = block[: len(block) // 2]
    os.close(handle)


def refuse_writes(folder: Path) -> None:
    """Let all later writes below the folder fail, as on a file system that became read-only."""

    def refuse(name: str, values: tuple[Any, ...]) -> None:
        if name not in WRITES and name != "open":
            return
        mode, flags = (values[1], values[2]) if name == "open" else ("w", 0)
        writes = set(mode) & set("wax+") if mode else flags & (os.O_WRONLY | os.O_RDWR)
        path = values[0]
        if writes and isinstance(path, str) and os.path.abspath(path).startswith(str(folder)):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), path)

    sys.addaudithook(refuse)


def limit(kind: int, amount: int) -> None:
    """Lower a resource limit of this process."""
    _, hard = resource.getrlimit(kind)
    resource.setrlimit(kind, (amount, hard))


def limit_memory() -> None:
    """Leave this process little more memory than it has."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit(resource.RLIMIT_AS, pages * resource.getpagesize() + 2**22)


def jump_clock(seconds: int) -> None:
    """Set the clock of this process forward or back.

    All times in the store, in event logs and in console logs come from these functions, and ages of
    files are compared with them. libfaketime 0.9.10 cannot be used: either it moves the monotonic
    clock too, which no change of the clock does, or each `time.sleep` of Python 3.11 fails.
    """
    now, now_ns = time.time, time.time_ns
    time.time = lambda: now() + seconds
    time.time_ns = lambda: now_ns() + int(seconds * 1e9)


def slow_disk(folder: Path, seconds: float) -> None:
    """Let each later write below the folder take longer."""

    def wait(name: str, values: tuple[Any, ...]) -> None:
        if name in WRITES and str(values[0]).startswith(str(folder)):
            time.sleep(seconds)

    sys.addaudithook(wait)
