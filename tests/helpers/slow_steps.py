"""Run the command line with slow steps, so that a test can disturb a run in the middle.

Steps are no longer slow once there is a file `hurry` in the current folder.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from kinopoisk_ft.cli import main
from kinopoisk_ft.training.loop import Trainer
from kinopoisk_ft.training.state import State

SECONDS = 0.2

if __name__ == "__main__":
    step = Trainer._step

    def slow(self: Trainer, state: State, *given: Any) -> None:
        if not Path("hurry").exists():
            time.sleep(SECONDS)
        step(self, state, *given)

    Trainer._step = slow  # type: ignore[method-assign]
    sys.exit(main(sys.argv[1:]))
