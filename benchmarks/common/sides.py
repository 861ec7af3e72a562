"""Run one experiment with the peer or with the project, each in a separate process."""

from __future__ import annotations

import argparse
import json
import os
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from common.report import Section, command_line, publish
from common.shapes import Shape
from kinopoisk_ft.tracking.mlflow_names import flat_metrics
from kinopoisk_ft.training.device import reset_peak_memory

PEER = Path(__file__).with_name("hf_trainer.py")
ADAPTERS = {"full": "adapter=none", "frozen": "adapter=freeze", "lora": "adapter=lora"}
NOTHING: Mapping[str, str] = MappingProxyType({})
FROZEN = ("trainer.prefix_cache=fp16",)
# With a Trainer, the pooler and classifier are new and have the learning rate of all weights.
SAME_HEAD = ("model.pooling=pooler", "trainer.head_lr=null")
# Stages of the project that a Trainer counts as training.
TRAINING = ("train_seconds", "val_seconds", "checkpoint_seconds", "prefix_seconds", "probe_seconds")


@dataclass(frozen=True)
class Experiment:
    """The settings of both sides, which validate after each epoch."""

    approach: str
    shape: Shape | None = None
    limit: int = 1500
    epochs: int = 1
    max_length: int = 256
    lr: float = 5e-5
    layers: int = 10
    seed: int = 42
    project: tuple[str, ...] = ()

    @property
    def warmup(self) -> int:
        """Return a tenth of all steps."""
        steps = self.epochs * -(-int(self.limit * 0.64) // 16)
        return max(1, steps // 10)


def add_inputs(parser: argparse.ArgumentParser) -> None:
    """Add the options that name the model and the reviews."""
    shared = Path(__file__).resolve().parents[2].parent / "shared"
    parser.add_argument("--model", type=Path, default=shared / "models" / "e5-small-ru")
    parser.add_argument("--data", type=Path, default=shared / "data" / "kinopoisk.jsonl.gz")


def absent(args: argparse.Namespace) -> bool:
    """Return whether an input is missing, and print which one."""
    missing = [path for path in (args.model, args.data) if not path.exists()]
    if missing:
        print(f"skipped: {missing[0]} does not exist; give --model and --data")
    return bool(missing)


def publish_table(
    description: str, title: str, measure: Callable[[argparse.Namespace], Section], remark: str
) -> int:
    """Run the command line of a benchmark with one table about real reviews; return exit code 0."""
    parser = command_line(description)
    add_inputs(parser)
    args = parser.parse_args()
    if not absent(args):
        publish(title, [measure(args)], args, remark)
    return 0


def run_peer(
    work: Experiment,
    model: Path,
    data: Path,
    precision: str,
    environment: Mapping[str, str] = NOTHING,
) -> dict[str, float]:
    """Return the peer's seconds, peak memory and test scores."""
    command = [sys.executable, PEER, "--approach", work.approach, "--model", model, "--data", data,
               "--limit", work.limit, "--epochs", work.epochs, "--max-length", work.max_length,
               "--lr", work.lr, "--warmup-steps", work.warmup, "--freeze-layers", work.layers,
               "--precision", precision, "--seed", work.seed, "--evaluate"]  # fmt: skip
    printed, mib = run_process(command, environment)
    found = json.loads(printed.strip().splitlines()[-1])
    result = {"seconds": found["train_seconds"], "mib": mib}
    return result | {key: found[key] for key in ("f1", "accuracy", "eval_seconds")}


def run_project(work: Experiment, model: Path, data: Path, precision: str) -> dict[str, float]:
    """Return the project's seconds, peak memory and test scores."""
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "mlflow.db"
        command = [sys.executable, "-m", "kinopoisk_ft", "model=encoder", f"model.name={model}",
                   f"data.path={data}", ADAPTERS[work.approach], f"data.limit={work.limit}",
                   f"data.max_length={work.max_length}", f"trainer.epochs={work.epochs}",
                   f"trainer.lr={work.lr}", f"trainer.warmup_steps={work.warmup}",
                   f"trainer.precision={precision}", f"seed={work.seed}", *SAME_HEAD,
                   f"tracking.uri=sqlite:///{store}",
                   f"output_dir={folder}/run", *work.project]  # fmt: skip
        command += [f"adapter.layers={work.layers}"] if work.approach == "frozen" else []
        _, mib = run_process(command, {"KINOPOISK_FT_CACHE": f"{folder}/cache"})
        found = read_metrics(store)
    seconds = sum(found.get(key, 0.0) for key in TRAINING)
    return {"seconds": seconds, "mib": mib, "eval_seconds": found["eval_seconds"],
            "tokens_per_second": found["tokens_per_second"], "f1": found["test_f1_weighted"],
            "accuracy": found["test_accuracy"]}  # fmt: skip


def read_metrics(store: Path) -> dict[str, float]:
    """Return the last value of each metric, by flat name, in an MLflow store with one run."""
    with closing(sqlite3.connect(store)) as database:
        return flat_metrics(dict(database.execute("SELECT key, value FROM latest_metrics")))


def run_process(command: list[Any], environment: Mapping[str, str] = NOTHING) -> tuple[str, float]:
    """Run a process; return its output and its peak resident memory in MiB."""
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "true", **environment}
    # Linux starts the peak of a new process at the peak of the process that starts it.
    reset_peak_memory(torch.device("cpu"))
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        process = subprocess.Popen([str(c) for c in command], stdout=out, stderr=err, env=env)
        try:
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:
            process.kill()
            raise
        process.returncode = status
        out.seek(0)
        err.seek(0)
        if status:
            sys.stderr.write(err.read())
            raise SystemExit(f"failed: {' '.join(map(str, command))}")
        return out.read(), usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
