"""Compare the time of one sweep with the time of the same runs as single commands.

    python benchmarks/sweep.py --json sweep.json --markdown sweep.md

All train five approaches with three seeds on the same real reviews. The sweep is one process, so
it imports its packages once. With the extra `parallel`, a second sweep trains two jobs at once,
with half of the threads each. All share tokens and the states of frozen layers through the disk.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import tempfile
import time
from itertools import product
from pathlib import Path
from typing import Any

from common.report import Section
from common.sides import publish_table, run_process

APPROACHES = {
    "full": "none",
    "lora": "lora",
    "bitfit": "bitfit",
    "frozen": "freeze",
    "head": "head",
}
CACHED = ("frozen", "head")
SEEDS = ("0", "1", "2")
SINGLE, SWEEP, PAIRS = "single commands", "one sweep", "one sweep, two jobs at once"
JOBLIB = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]


def compare(args: argparse.Namespace) -> Section:
    """Run the single commands and the sweeps once; return a section with a row for each."""
    names, seeds, limit = list(APPROACHES), list(SEEDS), 200
    if args.quick:
        names, limit = ["head"], 100
    common = ["model=encoder", f"model.name={args.model}", f"data.path={args.data}",
              f"data.limit={limit}", "data.max_length=128", "trainer.epochs=1"]  # fmt: skip
    single = [
        [*common, f"experiment={name}", f"seed={seed}"] for name, seed in product(names, seeds)
    ]
    sweep = [["-m", *common, f"experiment={','.join(names)}", f"seed={','.join(seeds)}"]]
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            write_experiment(Path(folder), name)
        # The first process reads the packages from the disk; it is not counted.
        train(folder, single[-1:])
        seconds = {SINGLE: train(folder, single), SWEEP: train(folder, sweep)}
        if importlib.util.find_spec("hydra_plugins.hydra_joblib_launcher"):
            seconds[PAIRS] = train(folder, [[*sweep[0], *JOBLIB]])
    rows: list[dict[str, Any]] = [
        {"way": way, "runs": len(single), "seconds": taken, "ratio": taken / seconds[SINGLE]}
        for way, taken in seconds.items()
    ]
    note = (
        f"e5-small-ru with {', '.join(f'adapter={APPROACHES[n]}' for n in names)}; seeds "
        f"{', '.join(seeds)}; {limit} reviews of up to 128 tokens, one epoch with validation and "
        "test, a saved model for each run. Frozen layers run once (`trainer.prefix_cache=fp16`). "
        "Seconds: from the start of the first command to the end of the last one, measured once. "
        "`ratio`: relative to single commands. Each way starts with an empty cache and an empty "
        "MLflow store. Two jobs at once have half of the threads each (`hydra/launcher=joblib`)."
    )
    return Section("The same runs", note, rows)


def write_experiment(folder: Path, name: str) -> None:
    """Write the config of an approach as an option of the group `experiment`."""
    file = folder / "conf" / "experiment" / f"{name}.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    text = f"# @package _global_\ndefaults:\n  - override /adapter: {APPROACHES[name]}\n"
    file.write_text(text + ("trainer:\n  prefix_cache: fp16\n" if name in CACHED else ""))


def train(folder: str, commands: list[list[str]]) -> float:
    """Run commands, which share an empty cache and an empty store; return their seconds."""
    with tempfile.TemporaryDirectory(dir=folder) as own:
        start = time.perf_counter()
        for number, arguments in enumerate(commands):
            command = [sys.executable, "-m", "kinopoisk_ft", *arguments,
                       f"--config-dir={folder}/conf", f"tracking.uri=sqlite:///{own}/mlflow.db",
                       f"output_dir={own}/{number}"]  # fmt: skip
            run_process(command, {"KINOPOISK_FT_CACHE": f"{own}/cache"})
        return time.perf_counter() - start


if __name__ == "__main__":
    remark = "All other settings: defaults."
    sys.exit(publish_table(__doc__, "A sweep and single runs", compare, remark))
