"""Commands whose reader goes away, as `head` does."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest


@pytest.mark.parametrize("command", ["kinopoisk_ft --help", "kinopoisk_ft.doctor"])
def test_a_command_that_nobody_reads_ends_quietly(command: str) -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", *command.split()], stdout=write, stderr=subprocess.PIPE, text=True
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.parametrize("module", ["report", "predict", "sync"])
def test_help_that_nobody_reads_ends_quietly(module: str) -> None:
    """Argparse itself passes over the error as it prints; what is left must not fail at exit."""
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", f"kinopoisk_ft.{module}", "--help"],
        stdout=write, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    os.close(write)
    assert done.stderr == ""
    assert done.returncode in (0, 1)  # not 120, Python's own at exit
