"""Test that a run imports only what it needs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

# One process, because its imports take seconds. What follows the fit draws plots with matplotlib.
CODE = """
import sys
import kinopoisk_ft.tasks.record
import kinopoisk_ft.training.loop

PLOTS = ("kinopoisk_ft.reporting", "matplotlib")
print([name for name in sys.modules if name.startswith(PLOTS)])

from kinopoisk_ft.cli import main
from kinopoisk_ft.tasks import finetune

def stop(*_):
    print(sorted({"peft", "transformers.modeling_utils", "matplotlib"} & set(sys.modules)))
    sys.exit(0)

finetune.record = stop
main(sys.argv[1:])
"""


def test_training_imports_no_plots_and_tfidf_neither_peft_nor_modelling_code(
    tmp_path: Path,
) -> None:
    args = ["model=tfidf", "data=demo", "data.reviews=150", "tracking=none", "output_dir=run"]
    done = subprocess.run(
        [sys.executable, "-c", CODE, *args], cwd=tmp_path, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    lines = done.stdout.splitlines()
    assert (lines[0], lines[-1]) == ("[]", "[]"), (done.stdout, done.stderr)
