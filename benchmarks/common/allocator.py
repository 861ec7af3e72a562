"""Choose the settings of the memory allocator: page faults are a large part of a fast call."""

from __future__ import annotations

import argparse

from kinopoisk_ft.training.device import keep_freed_memory

DEFAULT = "The allocator has its default settings: memory of large tensors is mapped at each call."


def add_option(parser: argparse.ArgumentParser) -> None:
    """Add the option that keeps glibc's default thresholds."""
    parser.add_argument(
        "--default-allocator",
        action="store_true",
        help="return freed memory to the kernel; by default it is kept, as in training",
    )


def settle(args: argparse.Namespace) -> str:
    """Set the allocator of this process; return a sentence about its settings."""
    return DEFAULT if args.default_allocator else keep()


def keep() -> str:
    """Keep freed memory in this process if the system supports it; return a sentence about it."""
    if not keep_freed_memory():
        return DEFAULT
    return (
        "Unless stated otherwise, freed memory stays in the process for all implementations, as in "
        "the project's training. By default, memory of large tensors is mapped at each call: this "
        "slows implementations that need much memory most, and takes up to half of our time at "
        "long lengths."
    )
