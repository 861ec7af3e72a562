"""Which allocator settings a time is taken under: page faults are a large part of a fast call."""

from __future__ import annotations

import argparse

from kinopoisk_ft.training.device import keep_freed_memory

DEFAULT = "The allocator has its default settings: large tensors are mapped afresh each time."


def add_option(parser: argparse.ArgumentParser) -> None:
    """Let the user leave glibc's thresholds alone."""
    parser.add_argument(
        "--default-allocator",
        action="store_true",
        help="let freed memory go back to the kernel; by default it is kept, as in training",
    )


def settle(args: argparse.Namespace) -> str:
    """Set the allocator for this process; returns a sentence on it."""
    return DEFAULT if args.default_allocator else keep()


def keep() -> str:
    """Keep freed memory in this process, where that can be; returns a sentence on it."""
    if not keep_freed_memory():
        return DEFAULT
    return (
        "Freed memory stays in the process, as in the project's training, for all ways alike where "
        "nothing else is said: by default large tensors are mapped afresh at each call, which "
        "costs memory-hungry ways the most and ours up to half of its time at long lengths."
    )
