"""Start runs as forks of this process, which has imported everything, and read what they left."""

from __future__ import annotations

import hashlib
import importlib
import json
import logging
import os
import pkgutil
import shutil
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
from inject import Injector
from safetensors import safe_open
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

import kinopoisk_ft
from kinopoisk_ft import cli
from kinopoisk_ft.ops import precompile
from kinopoisk_ft.tracking.event_log import find_logs

COMMON = (
    "data=demo", "data.reviews=90", "data.max_length=32", "trainer.epochs=2",
    "trainer.batch_size=8", "trainer.checkpoint_every=2", "trainer.eval_every=4",
    "trainer.device=cpu", "tracking.log_model=false", "seed=1",
)  # fmt: skip
BERT = (
    "model=bert_scratch", "model.num_layers=2", "model.hidden_size=32", "model.num_heads=2",
    "model.vocab_size=300",
)  # fmt: skip
DDP = (*BERT, "trainer.strategy=ddp", "trainer.process_timeout=60")
MAMBA = ("model=mamba_scratch", "model.num_layers=2", "model.d_model=32")
KINDS: dict[str, tuple[str, ...]] = {
    "bert": (*BERT, "trainer.precision=fp32"),
    "bert bf16": (*BERT, "trainer.precision=bf16"),
    "lora, accumulation": (*BERT, "adapter=lora", "trainer.accumulate=2"),
    "frozen layers, prefix cache": (*BERT, "adapter=freeze", "adapter.layers=1",
                                    "trainer.prefix_cache=fp32"),
    "windows": (*BERT, "data.truncation=windows", "data.max_length=16", "data.max_windows=3"),
    "mamba": MAMBA,
    "pretraining": ("task=pretrain", "task.save_to=base", "trainer.best_metric=loss", *BERT),
    "tf-idf": ("model=tfidf",),
    "mlflow model": (*BERT, "tracking.log_model=true"),
    "two processes, fault in rank 0": DDP,
    "two processes, fault in rank 1": DDP,
}  # fmt: skip
# The runs that create their MLflow store. It takes seconds, so the other runs get an empty store.
NEW_STORE = {"tf-idf", "mlflow model"}
EMPTY_STORE = "empty.db"
TIMEOUT = 120.0  # seconds until a run counts as hanging
CONSOLE = "console.log"
# Metrics that differ between equal runs.
VARYING = ("seconds", "per_second", "memory", "system/", "time/")


def preload(root: Path) -> None:
    """Import the package and load the kernels once for all forks, and create an empty store.

    Nothing is trained here, because PyTorch's backward pass starts threads, which a fork lacks.
    """
    for module in pkgutil.walk_packages(kinopoisk_ft.__path__, "kinopoisk_ft."):
        # Modules for optional extras and for GPUs may be missing here.
        with suppress(ImportError):
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)
    precompile.main()

    def create() -> int:
        mlflow.MlflowClient(f"sqlite:///{root / EMPTY_STORE}").search_experiments()
        return 0

    wait(start(root, create))


def fork(work: Callable[[], int | None]) -> int:
    """Do the work in a fork of this process; return the process id."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        code = work() or 0
    except SystemExit as stop:
        code = int(stop.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def start(folder: Path, work: Callable[[], int]) -> int:
    """Run a command line in a fork, with its output in the folder; return the process id."""

    def run() -> int:
        os.setsid()
        os.chdir(folder)
        console = os.open(CONSOLE, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        for number in (1, 2):
            os.dup2(console, number)
        sys.stdout, sys.stderr = (os.fdopen(n, "w", buffering=1, closefd=False) for n in (1, 2))
        os.environ["KINOPOISK_FT_CACHE"] = str(folder / "cache")
        return work()

    return fork(run)


def wait(child: int) -> int | None:
    """Return the exit code, negative for a signal; None if the process hangs and was killed."""
    end = time.monotonic() + TIMEOUT
    while time.monotonic() < end:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def create_folder(folder: Path, kind: str) -> None:
    """Prepare the folder for a run of a kind, next to the empty store."""
    folder.mkdir(exist_ok=True)
    if kind not in NEW_STORE:
        shutil.copy(folder.parent / EMPTY_STORE, folder / "mlflow.db")


def command(kind: str, folder: Path, injector: Injector | None = None) -> Callable[[], int]:
    """Return the training of a kind of run in the folder, with a fault if there is an injector."""
    overrides = [*COMMON, *KINDS[kind], f"output_dir={folder / 'run'}",
                 f"tracking.uri=sqlite:///{folder / 'mlflow.db'}"]  # fmt: skip

    def train() -> int:
        return cli.main(overrides)

    def disturbed() -> int:
        return injector.watch(train) if injector else train()

    def member() -> None:
        # A new process would not have the handlers of its parent process.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            code = disturbed() if kind.endswith(f"rank {os.environ['RANK']}") else train()
        # The parent process would take this for success.
        except KeyboardInterrupt:
            code = 130
        if code:
            sys.exit(code)

    return partial(_launch, member) if KINDS[kind] is DDP else disturbed


def _launch(member: Callable[[], None]) -> int:
    """Do what `torchrun --standalone --nproc-per-node=2` does, with forks."""
    # For each failed process, torch would print a traceback besides the messages of the run.
    logging.getLogger("torch.distributed.elastic.multiprocessing.api").setLevel(logging.CRITICAL)
    config = LaunchConfig(1, 1, 2, rdzv_backend="c10d", rdzv_endpoint="localhost:0", max_restarts=0,
                          run_id="chaos", local_addr="localhost", start_method="fork",
                          logs_specs=DefaultLogsSpecs("torchelastic"))  # fmt: skip
    try:
        elastic_launch(config, member)()
    except ChildFailedError:
        return 1
    return 0


def sync(folder: Path) -> Callable[[], int]:
    """Return the command that delivers what the store lacks."""
    return lambda: cli.main(["sync", str(folder)])


def is_finished(folder: Path) -> bool:
    """Return whether the run wrote its result and has nothing left to do."""
    out = folder / "run"
    ended = (out / "result.json").exists() or (folder / "base/config.json").exists()
    return ended and not (out / "unfinished.json").exists()


def describe(folder: Path) -> dict[str, Any]:
    """Return everything that must be equal in a disturbed and an undisturbed run."""
    out = folder / "run"
    return {
        "weights": {str(file.relative_to(folder)): _digest_weights(file)
                    for place in (out / "model", folder / "base")
                    for file in sorted(place.rglob("*.safetensors"))},
        "predictions": _digest_predictions(out / "predictions.parquet"),
        "scores": _constant(json.loads((out / "result.json").read_text()))
        if (out / "result.json").exists() else None,
        "log": _read_log(out),
        "store": _read_store(f"sqlite:///{folder / 'mlflow.db'}"),
    }  # fmt: skip


def _digest_weights(file: Path) -> str:
    digest = hashlib.sha256()
    with safe_open(file, "pt") as tensors:
        for name in sorted(tensors.keys()):
            digest.update(name.encode() + tensors.get_tensor(name).numpy().tobytes())
    return digest.hexdigest()


def _digest_predictions(file: Path) -> str | None:
    if not file.exists():
        return None
    return hashlib.sha256(pd.read_parquet(file).to_csv(index=False).encode()).hexdigest()


def _constant(values: dict[str, Any]) -> dict[str, Any]:
    return {
        key: value
        for key, value in values.items()
        if not any(part in key for part in VARYING) and key not in ("run_id", "model_dir")
    }


def _read_log(out: Path) -> list[Any]:
    found = []
    for log in find_logs(out):
        for entry in log.events:
            if entry["verb"] == "metrics":
                found += [[entry["step"], *item] for item in _constant(entry["values"]).items()]
    # A resumed run repeats the steps after its checkpoint; the repetition must be equal.
    return sorted({json.dumps(item): item for item in found}.values(), key=json.dumps)


def _read_store(uri: str) -> list[dict[str, Any]]:
    """Return the runs of the store, each with its metrics, params, artifacts and models."""
    client = mlflow.MlflowClient(uri)
    found = []
    for experiment in client.search_experiments():
        for run in client.search_runs([experiment.experiment_id]):
            metrics = [
                [key, point.step, point.value]
                for key in _constant(run.data.metrics)
                for point in client.get_metric_history(run.info.run_id, key)
            ]
            models = client.search_logged_models([experiment.experiment_id])
            # A run that was stopped before its first step may stay in the store, as KILLED.
            if run.info.status == "KILLED" and not run.data.metrics:
                continue
            described = {
                "name": run.info.run_name,
                "status": run.info.status,
                "metrics": sorted(metrics),
                "params": sorted(set(run.data.params) - {"output_dir"}),
                # A run that failed and was continued keeps the traceback of its failure.
                "artifacts": sorted({file.path for file in client.list_artifacts(run.info.run_id)}
                                    - {"traceback.txt"}),
                "models": Counter(m.name for m in models if m.source_run_id == run.info.run_id),
            }  # fmt: skip
            found.append(described)
    return found
