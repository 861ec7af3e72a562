"""Start several training processes, and read what they recorded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import tiny
from distributed_child import SETTINGS
from forks import CHILDREN
from mlflow import MlflowClient
from networks import model_overrides
from torch.distributed import TCPStore

NO_DROPOUT = ["model.dropout=0"]
FSDP = "trainer.strategy=fsdp"


def started(target: Any, count: int, *args: Any) -> list[int | None]:
    """Run a function in `count` processes (0: in one without torchrun); return the exit codes."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    members = [
        CHILDREN.Process(target=target, args=(number, count, store.port, *args))
        for number in range(max(1, count))
    ]
    for process in members:
        process.start()
    for process in members:
        process.join(100)
    return [process.exitcode for process in members]


def command_line(here: Path) -> list[str]:
    """Write reviews; return the arguments of a run that reads them."""
    texts, labels = tiny.reviews(60)
    frame = pd.DataFrame({"text": [f"{t} {i}" for i, t in enumerate(texts)], "mark": labels})
    frame.to_json(here / "reviews.jsonl", orient="records", lines=True, force_ascii=False)
    return [
        "data=file", f"data.path={here / 'reviews.jsonl'}", "data.text_column=text",
        "data.label_column=mark", "data.max_length=32", "tracking.log_model=false", *SETTINGS,
        *model_overrides("bert_scratch"), *NO_DROPOUT, f"output_dir={here / 'run'}",
        f"tracking.uri=sqlite:///{here / 'mlflow.db'}",
    ]  # fmt: skip


def only_run(here: Path) -> Any:
    """Return the one run in the store."""
    client = MlflowClient(f"sqlite:///{here / 'mlflow.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("kinopoisk_ft").experiment_id])
    return run


def losses(here: Path) -> dict[tuple[str, int], float]:
    """Return the loss of each step of the finished run; none may occur twice."""
    run = only_run(here)
    assert run.info.status == "FINISHED"
    client = MlflowClient(f"sqlite:///{here / 'mlflow.db'}")
    found = [
        metric
        for key in ("train/loss", "val/loss", "test/loss")
        for metric in client.get_metric_history(run.info.run_id, key)
    ]
    values = {(metric.key, metric.step): metric.value for metric in found}
    assert len(values) == len(found)
    return values
