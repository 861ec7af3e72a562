"""Measure the stages of a whole run, from the command to the report.

    python benchmarks/stages.py --json stages.json --markdown stages.md

A process trains on real reviews with an empty cache, then another one writes the report. The
seconds of the stages are the metrics that the run logs to MLflow.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common.report import Section
from common.sides import publish_table, read_metrics

REMARK = "All settings are the project's defaults."
STAGES = {
    "tokenize": "tokenizing",
    "build": "loading the model",
    "probe": "measuring memory with one review",
    "train": "training",
    "val": "validation, each epoch",
    "checkpoint": "checkpoints and best weights",
    "eval": "test",
    "save": "writing the model folder",
}


def measure(args: argparse.Namespace) -> Section:
    """Train and report once; return the section with a row for each stage."""
    limit = 200 if args.quick else 1000
    with tempfile.TemporaryDirectory() as folder:
        store = f"sqlite:///{folder}/mlflow.db"
        whole = _seconds(
            folder, "kinopoisk_ft", "model=encoder", f"model.name={args.model}", "adapter=none",
            f"data.path={args.data}", f"data.limit={limit}", "data.max_length=256",
            "trainer.epochs=2", f"tracking.uri={store}", f"output_dir={folder}/run",
        )  # fmt: skip
        report = _seconds(
            folder, "kinopoisk_ft.report", "--uri", store, "--output", f"{folder}/report"
        )
        found = read_metrics(Path(folder) / "mlflow.db")
    stages = {told: found.get(f"{key}_seconds", 0.0) for key, told in STAGES.items()}
    rest = whole - sum(stages.values())
    stages = {"imports, reading, splitting, MLflow": rest, **stages, "the report": report}
    total = sum(stages.values())
    rows: list[dict[str, Any]] = [
        {"stage": told, "seconds": seconds, "share": seconds / total}
        for told, seconds in stages.items()
    ]
    note = (
        f"Full fine-tuning of e5-small-ru, 256 tokens, 2 epochs, data.limit={limit} "
        "(64% train, 16% validation, 20% test), precision auto."
    )
    return Section("One run", note, rows)


def _seconds(folder: str, module: str, *arguments: str) -> float:
    command = [sys.executable, "-m", module, *arguments]
    start = time.perf_counter()
    empty = {**os.environ, "KINOPOISK_FT_CACHE": f"{folder}/cache"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=empty)
    if done.returncode:
        raise SystemExit(f"failed: {' '.join(map(str, command))}\n{done.stderr}")
    return time.perf_counter() - start


if __name__ == "__main__":
    sys.exit(publish_table(__doc__, "Stages of a run", measure, REMARK))
