"""Measure in a new process, because earlier imports and allocations would change the result."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any


def child_figures(script: str, *arguments: str, **environment: str) -> dict[str, Any]:
    """Run a script in a new process, and return the JSON object in its last line."""
    done = subprocess.run(
        [sys.executable, script, *arguments],
        capture_output=True, text=True, env={**os.environ, **environment},
    )  # fmt: skip
    if done.returncode:
        sys.stderr.write(done.stderr)
        raise SystemExit(f"failed: {script} {' '.join(arguments)}")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found
