"""Compare the time of one sweep with the time of the same runs as single commands.

    python benchmarks/sweep.py --json sweep.json --markdown sweep.md

Both train five approaches with three seeds on the same real reviews. The sweep is one process, so
it imports its packages once. Both share tokens and the states of frozen layers through the disk.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from itertools import product
from pathlib import Path
from typing import Any

from common.report import Section, command_line, publish
from common.sides import absent, add_inputs, run_process

APPROACHES = {
    "full": "none",
    "lora": "lora",
    "bitfit": "bitfit",
    "frozen": "freeze",
    "head": "head",
}
CACHED = ("frozen", "head")
SEEDS = ("0", "1", "2")


def main() -> int:
    """Run the command line; return the exit code."""
    parser = command_line(__doc__)
    add_inputs(parser)
    args = parser.parse_args()
    if not absent(args):
        publish("A sweep and single runs", [compare(args)], args, "All other settings: defaults.")
    return 0


def compare(args: argparse.Namespace) -> Section:
    """Run the single commands, then the sweep; return a section with a row for each."""
    names, seeds = list(APPROACHES), list(SEEDS)
    limit = 300
    if args.quick:
        names, seeds, limit = ["head"], seeds[:2], 100
    common = ["model=encoder", f"model.name={args.model}", f"data.path={args.data}",
              f"data.limit={limit}", "data.max_length=128", "trainer.epochs=1"]  # fmt: skip
    taken = {"single commands": 0.0, "one sweep": 0.0}
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            write_experiment(Path(folder), name)
        # The first process reads the packages from the disk; it is not counted.
        train(Path(folder), "warm", "run", [*common, f"experiment={names[-1]}"])
        for name, seed in product(names, seeds):
            one = [*common, f"experiment={name}", f"seed={seed}"]
            taken["single commands"] += train(Path(folder), "single", f"{name}-{seed}", one)
        listed = [f"experiment={','.join(names)}", f"seed={','.join(seeds)}"]
        taken["one sweep"] = train(Path(folder), "sweep", "study", ["-m", *common, *listed])
    single = taken["single commands"]
    rows: list[dict[str, Any]] = [
        {"way": way, "runs": len(names) * len(seeds), "seconds": seconds, "ratio": seconds / single}
        for way, seconds in taken.items()
    ]
    note = (
        f"e5-small-ru with {', '.join(f'adapter={APPROACHES[n]}' for n in names)}; seeds "
        f"{', '.join(seeds)}; {limit} reviews of up to 128 tokens, one epoch with validation and "
        "test, a saved model for each run. Frozen layers run once (`trainer.prefix_cache=fp16`)."
    )
    return Section("The same runs, one after another", note, rows)


def write_experiment(folder: Path, name: str) -> None:
    """Write the config of an approach as an option of the group `experiment`."""
    file = folder / "conf" / "experiment" / f"{name}.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    text = f"# @package _global_\ndefaults:\n  - override /adapter: {APPROACHES[name]}\n"
    file.write_text(text + ("trainer:\n  prefix_cache: fp16\n" if name in CACHED else ""))


def train(folder: Path, way: str, output: str, arguments: list[str]) -> float:
    """Run one command of a way; both ways start with an empty cache. Return its seconds."""
    command = [sys.executable, "-m", "kinopoisk_ft", *arguments, f"--config-dir={folder}/conf",
               f"tracking.uri=sqlite:///{folder}/{way}.db",
               f"output_dir={folder}/{way}/{output}"]  # fmt: skip
    start = time.perf_counter()
    run_process(command, {**os.environ, "KINOPOISK_FT_CACHE": f"{folder}/cache-{way}"})
    return time.perf_counter() - start


if __name__ == "__main__":
    sys.exit(main())
