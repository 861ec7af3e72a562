"""TF-IDF needs none of the libraries that networks need."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

# What was imported when the fit has ended; what follows draws plots with matplotlib.
CODE = """
import sys
from kinopoisk_ft.cli import main
from kinopoisk_ft.tasks import finetune

def stop(*_):
    print(sorted({"peft", "transformers.modeling_utils", "matplotlib"} & set(sys.modules)))
    sys.exit(0)

finetune.record = stop
main(sys.argv[1:])
"""


def test_a_fit_imports_neither_peft_nor_modelling_code(tmp_path: Path) -> None:
    args = ["model=tfidf", "data=demo", "data.reviews=150", "tracking=none", "output_dir=run"]
    done = subprocess.run(
        [sys.executable, "-c", CODE, *args], cwd=tmp_path, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.stdout.splitlines()[-1] == "[]", done.stderr
