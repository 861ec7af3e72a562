"""The faults, and how each of them is injected into a run."""

from __future__ import annotations

import os
import random
import resource
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import inject

HOUR = 3600
MOST_DELAY = 0.5  # seconds after an event, in which a kill between events may come

Change = Callable[[bytearray, random.Random], None]


@dataclass(frozen=True)
class Fault:
    """One kind of fault.

    Args:
        act: what the process of the run does at the moment of the fault.
        after: what happens to the files after the first attempt has ended.
        twice: whether the same command is started a second time at this moment.
        needs_disk: whether to mount a small file system for the folder.
        needs_checkpoint: whether the run must have a checkpoint at the moment of the fault.
        possible: whether this machine can inject the fault.
    """

    name: str
    act: Callable[[Path, random.Random], None] = lambda folder, rng: inject.kill()
    after: Callable[[Path, random.Random], str] | None = None
    twice: bool = False
    needs_disk: bool = False
    needs_checkpoint: bool = False
    possible: bool = True


def damage(change: Change, *names: str) -> Callable[[Path, random.Random], str]:
    """Return a fault that changes a random file of some folders, and returns its name."""
    return partial(_damage, change, names)


def _damage(change: Change, names: Sequence[str], folder: Path, rng: random.Random) -> str:
    files = [
        file
        for root in (folder / name for name in names)
        for file in sorted(root.rglob("*"))
        if file.is_file() and file.stat().st_size and file.suffix not in (".log", ".lock")
    ]
    if not files:
        return ""
    file = rng.choice(files)
    content = bytearray(file.read_bytes())
    change(content, rng)
    file.write_bytes(content)
    return str(file.relative_to(folder))


def flip(content: bytearray, rng: random.Random) -> None:
    """Flip a random bit."""
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)


def truncate(content: bytearray, rng: random.Random) -> None:
    """Cut a file at a random length."""
    del content[rng.randrange(len(content)) :]


def burst(number: signal.Signals) -> Callable[[Path, random.Random], None]:
    """Return a fault that sends a signal one to three times."""
    return lambda folder, rng: inject.send_burst(number, rng.randint(1, 3))


FAULTS = (
    Fault("SIGKILL"),
    Fault("SIGKILL between events", lambda folder, rng: inject.send_burst(
        signal.SIGKILL, 1, rng.random() * MOST_DELAY)),
    Fault("SIGTERM", burst(signal.SIGTERM)),
    Fault("Ctrl-C", burst(signal.SIGINT)),
    Fault("full disk", lambda folder, rng: inject.fill_disk(folder), needs_disk=True,
          possible=os.geteuid() == 0),
    Fault("read-only disk", lambda folder, rng: inject.refuse_writes(folder)),
    Fault("flipped bit", after=damage(flip, "run", "cache")),
    Fault("truncated file", after=damage(truncate, "run", "cache")),
    Fault("flipped checkpoint", after=damage(flip, "run/checkpoints"), needs_checkpoint=True),
    Fault("two at once", lambda folder, rng: None, twice=True),
    Fault("locked store", lambda folder, rng: inject.lock_store(folder)),
    Fault("deleted store", lambda folder, rng: inject.delete_store(folder)),
    Fault("clock jump", lambda folder, rng: inject.jump_clock(rng.choice((-2 * HOUR, 2 * HOUR)))),
    Fault("few open files", lambda folder, rng: inject.limit(
        resource.RLIMIT_NOFILE, len(os.listdir("/proc/self/fd")) + rng.randint(0, 6))),
    Fault("little memory", lambda folder, rng: inject.limit_memory()),
    Fault("slow disk", lambda folder, rng: inject.slow_disk(folder, 0.02)),
)  # fmt: skip
