"""Test that a run prints its first line before slow imports."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

CODE = """
import sys
from kinopoisk_ft.cli import main
from kinopoisk_ft.sweeps import preview

def stop(*_):
    print(sorted({"torch", "sklearn", "pandas", "mlflow", "transformers"} & set(sys.modules)))
    sys.exit(0)

preview.check_config = stop
main(sys.argv[1:])
"""


def test_first_line_says_what_a_run_does_and_needs_no_heavy_package(tmp_path: Path) -> None:
    args = ["train", "model=encoder", "model.name=/models/small", "adapter=lora", "data=demo"]
    done = subprocess.run(
        [sys.executable, "-c", CODE, *args, "output_dir=run"], cwd=tmp_path, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    expected = ["finetune small + lora on demo (synthetic reviews), seed 42, in run", "[]"]
    assert done.stdout.splitlines() == expected, done.stderr
    assert not (tmp_path / "run").exists()
