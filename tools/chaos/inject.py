"""Inject a fault into the process of a run, before a chosen event of a chosen phase.

An event is a write that Python announces to audit hooks (opening a file for writing, renaming,
deleting, creating a folder), an SQL statement, or the entry into a phase.
"""

from __future__ import annotations

import errno
import json
import mmap
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

# The parent process reads the phase of the run here, as text padded with spaces.
PHASE, FIRED, COUNTS = "phase", "fired.json", "counts.json"
PHASE_BYTES = 32
WRITES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.truncate"}
SIGNAL_GAP = 0.05  # seconds between the signals of a burst


class Injector:
    """Count the events of each phase, and act once.

    Args:
        folder: the folder of the experiment; only writes below it count.
        phase: act in this phase; empty to count only.
        moment: how many events of the phase come first.
        act: what to do.
    """

    def __init__(self, folder: Path, phase: str, moment: int, act: Callable[[], None]) -> None:
        self.folder, self.phase, self.moment, self.act = str(folder), phase, moment, act
        self.counts: Counter[str] = Counter()
        self.open_phases = ["start"]
        self.fired = False
        with (folder / PHASE).open("wb") as file:
            file.write(b" " * PHASE_BYTES)
        with (folder / PHASE).open("r+b") as file:
            self.shared = mmap.mmap(file.fileno(), PHASE_BYTES)

    def install(self) -> None:
        """Start to count."""
        self.enter("start")
        section = Clock.section

        @contextmanager
        def watched(clock: Clock, name: str) -> Iterator[None]:
            self.enter(name)
            try:
                with section(clock, name):
                    yield
            finally:
                self.open_phases.pop()
                if name == "save":
                    self.open_phases[0] = "record"
                self.share(self.open_phases[-1])

        Clock.section = watched  # type: ignore[method-assign]
        event.listen(Engine, "before_cursor_execute", lambda *_: self.count("delivery"))
        sys.addaudithook(self.hear)

    def enter(self, name: str) -> None:
        """Enter a phase."""
        self.open_phases.append(name)
        self.share(name)
        self.count(name)

    def share(self, name: str) -> None:
        """Show the phase to the parent process."""
        self.shared[:] = name.encode().ljust(PHASE_BYTES)

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
        if isinstance(path, str) and os.path.abspath(path).startswith(self.folder):
            is_log = "/tracking/" in path or path.endswith((".db", ".db-journal"))
            self.count("delivery" if is_log else self.open_phases[-1])

    def count(self, phase: str) -> None:
        """Count an event, and act if it is the chosen one."""
        if self.fired:
            return
        self.counts[phase] += 1
        if phase == self.phase and self.counts[phase] > self.moment:
            self.fired = True
            write_raw(Path(self.folder, FIRED), json.dumps({"phase": phase}))
            self.act()

    def save(self) -> None:
        """Write the counts, from which the schedule of later faults is drawn."""
        self.fired = True
        write_raw(Path(self.folder, COUNTS), json.dumps(self.counts))


def write_raw(file: Path, text: str) -> None:
    """Write a small file."""
    file.write_text(text, "utf-8")


def kill() -> None:
    """End this process like an out-of-memory kill or a power cut."""
    os.kill(os.getpid(), signal.SIGKILL)


def send_burst(number: signal.Signals, count: int) -> None:
    """Let another process send a signal to this one several times, as an impatient user does."""
    name, process = number.name.removeprefix("SIG"), os.getpid()
    script = f"for i in $(seq {count}); do kill -{name} {process}; sleep {SIGNAL_GAP}; done"
    os.posix_spawn("/bin/sh", ["sh", "-c", script], {})


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


def jump_clock(seconds: float) -> None:
    """Set the clock of this process forward or back."""
    now, now_ns = time.time, time.time_ns
    time.time = lambda: now() + seconds
    time.time_ns = lambda: now_ns() + int(seconds * 1e9)


def slow_disk(folder: Path, seconds: float) -> None:
    """Let each later write below the folder take longer."""

    def wait(name: str, values: tuple[Any, ...]) -> None:
        if name in WRITES and str(values[0]).startswith(str(folder)):
            time.sleep(seconds)

    sys.addaudithook(wait)
