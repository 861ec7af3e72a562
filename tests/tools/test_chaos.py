"""Test that disturbed runs lose nothing, and that the tool would notice a loss."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from places import ROOT


def disturb(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "tools/chaos", *options]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_nothing_is_lost() -> None:
    done = disturb("--minutes", "3", "--seed", "1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("| survived |") > 5


@pytest.mark.slow
def test_damaged_checkpoints_without_digests_are_found() -> None:
    # With this seed, the sixth of thirty experiments damages a checkpoint while it is written.
    done = disturb("--minutes", "2", "--seed", "0", "--kinds", "bert",
                   "--faults", "flipped checkpoint", "--break-checkpoints")  # fmt: skip
    assert done.returncode == 1, done.stdout + done.stderr
    assert "| lost |" in done.stdout or "| traceback |" in done.stdout
