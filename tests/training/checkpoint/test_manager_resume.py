"""Check that a killed and restarted run ends like an uninterrupted one, bit for bit."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from forks import CHILDREN
from mlflow import MlflowClient
from networks import model_overrides
from resume_child import SETTINGS, command, moments, slow_command, train
from sweeping import write_reviews

from kinopoisk_ft.training.checkpoint.folder import CheckpointFolder


def child(target: Any, *args: Any) -> int:
    """Run a function in a new process; return its exit code, negative for a signal."""
    process = CHILDREN.Process(target=target, args=args)
    process.start()
    process.join(100)
    assert process.exitcode is not None
    return process.exitcode


def by_step(folder: Path) -> dict[tuple[int, str], Any]:
    """Return each value of each step; values that were recorded twice must be equal."""
    found: dict[tuple[int, str], Any] = {}
    for line in (folder / "lines.jsonl").read_text().splitlines():
        values = json.loads(line)
        step = values.pop("step")
        for key, value in values.items():
            assert found.setdefault((step, key), value) == value, (step, key)
    return found


def compare(
    place: Path, kind: str, adapter: str, more: Sequence[str], kills: Sequence[Any]
) -> None:
    """Compare an uninterrupted training with one that is killed at each moment in turn."""
    # Write the checkpoint here once, for all child processes.
    if not kind.endswith("scratch"):
        model_overrides(kind)
    whole = place / f"{kind}_{adapter}_whole"
    assert child(train, whole, kind, adapter, more, None) == 0
    expected = json.loads((whole / "result.json").read_text())
    for number, moment in enumerate(kills):
        broken = place / f"{kind}_{adapter}_{number}"
        assert child(train, broken, kind, adapter, more, moment) == -signal.SIGKILL, moment
        assert not (broken / "result.json").exists()
        assert child(train, broken, kind, adapter, more, None) == 0, moment
        assert json.loads((broken / "result.json").read_text()) == expected, moment
        assert by_step(broken) == by_step(whole), moment


@pytest.mark.parametrize(
    ("kind", "adapter", "kills"),
    [
        pytest.param(
            "bert_scratch", "lora", [("backward", 9), ("rename", 5)], marks=pytest.mark.slow
        ),
        ("mamba_scratch", "none", [("update", 6)]),
        pytest.param("mamba_scratch", "none", [("evaluation", 2)], marks=pytest.mark.slow),
    ],
)
def test_killed_runs_end_the_same(kind: str, adapter: str, kills: Any, tmp_path: Path) -> None:
    compare(tmp_path, kind, adapter, [], kills)


PREFIX = ["trainer.prefix_cache=fp32"]
MATRIX = [
    ("bert_scratch", "none", []), ("bert_scratch", "freeze", []), ("bert_scratch", "dora", []),
    ("bert_scratch", "ia3", ["trainer.sampling=balanced"]), ("bert_scratch", "bitfit", []),
    ("bert_scratch", "head", PREFIX), ("bert_scratch", "freeze", PREFIX),
    ("bert_scratch", "none", ["trainer.precision=fp16"]), ("bert_scratch", "pretrain", []),
    ("bert_scratch", "none", ["trainer/optimizer=sgd", "trainer.accumulate=1"]),
    ("mamba_scratch", "lora", []), ("mamba_scratch", "freeze", PREFIX),
    ("mamba_scratch", "pretrain", []), ("mamba2_scratch", "none", ["trainer.accumulate=3"]),
    ("bert_scratch", "rslora", []),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    "row", range(len(MATRIX)), ids=lambda i: "-".join([*MATRIX[i][:2], *MATRIX[i][2]])
)
def test_matrix_of_kills(row: int, tmp_path: Path) -> None:
    kind, adapter, more = MATRIX[row]
    drawn = [m for m in moments(row, 6) if adapter != "pretrain" or m[0] != "evaluation"]
    compare(tmp_path, kind, adapter, more, drawn[:3])


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stopped")
    write_reviews(folder, 60)
    return folder


RUN = [
    "data=file", "data.path=reviews.jsonl", "data.text_column=text", "data.label_column=mark",
    "data.max_length=32", "tracking.log_model=false", *SETTINGS, *model_overrides("bert_scratch"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "code", "moment"),
    [
        ("SIGTERM", 143, ("backward", 7)),
        pytest.param("SIGINT", 130, ("evaluation", 2), marks=pytest.mark.slow),
    ],
)
def test_run_resumes_after_a_signal(
    name: str, code: int, moment: tuple[str, int], here: Path
) -> None:
    args = [*RUN, f"output_dir={name}", f"tracking.experiment={name}", "seed=null"]
    assert child(command, args, here, moment, getattr(signal, name)) == code
    client = MlflowClient(f"sqlite:///{here / 'mlflow.db'}")
    experiment = client.get_experiment_by_name(name).experiment_id
    (run,) = client.search_runs([experiment])
    assert run.info.status == "KILLED"
    folder = CheckpointFolder(here / name / "checkpoints")
    stopped = folder.newest()
    assert stopped is not None
    # As if the first process had needed more memory than the second one.
    assert stopped.plain["state"]["peak_memory_mb"] > 0
    stopped.plain["state"]["peak_memory_mb"] = 1e6
    best = stopped.plain["best_weights"]
    folder.write(stopped.load_tensors(), stopped.plain, {best["file"]: best["digest"]})
    assert child(command, args, here, None) == 0
    (again,) = client.search_runs([experiment])
    assert (again.info.run_id, again.info.status) == (run.info.run_id, "FINISHED")
    assert again.data.metrics["system/peak_memory_mb"] == 1e6
    for key in again.data.metrics:
        steps = [m.step for m in client.get_metric_history(run.info.run_id, key)]
        assert len(steps) == len(set(steps)), key
    losses = client.get_metric_history(run.info.run_id, "train/loss")
    assert sorted(m.step for m in losses) == [2, 4, 6, 8, 10]
    # The best weights are in the model folder, so a second copy would only take space.
    assert not list((here / name / "checkpoints").iterdir())
    assert not (here / name / "unfinished.json").exists()


@pytest.mark.slow
def test_another_config_is_refused_and_never_starts_over(here: Path) -> None:
    args = [*RUN, "output_dir=other", "tracking=none", "seed=1"]
    args.remove("tracking.log_model=false")
    assert child(command, args, here, ("backward", 7)) == 143
    assert child(command, [*args, "trainer.lr=0.5"], here, None) == 1
    error = (here / "stderr.txt").read_text()
    assert "trainer.lr: 0.01 before, 0.5 now" in error
    assert "resume=never" in error
    assert child(command, [*args, "trainer.lr=0.5", "resume=never"], here, None) == 0


def logged(name: str) -> list[str]:
    """Return the arguments of a run that records every step."""
    return [*RUN, f"output_dir={name}", f"tracking.experiment={name}", "trainer.log_every=1"]


def recorded(here: Path, name: str) -> dict[tuple[str, int], float]:
    """Return each value of the finished run without times and memory; none may occur twice."""
    client = MlflowClient(f"sqlite:///{here / 'mlflow.db'}")
    runs = client.search_runs([client.get_experiment_by_name(name).experiment_id])
    (run,) = [run for run in runs if run.info.status == "FINISHED"]
    found = [m for key in run.data.metrics for m in client.get_metric_history(run.info.run_id, key)]
    values = {(metric.key, metric.step): metric.value for metric in found}
    assert len(values) == len(found)
    measured = ("_seconds", "_per_second", "memory_mb")
    return {key: value for key, value in values.items() if not key[0].endswith(measured)}


@pytest.fixture(scope="module")
def unbroken(here: Path) -> dict[tuple[str, int], float]:
    """Return the values of an uninterrupted run."""
    assert child(command, logged("unbroken"), here, None) == 0
    found = recorded(here, "unbroken")
    assert [step for key, step in found if key == "train/loss"] == list(range(1, 11))
    assert ("test/f1_weighted", 10) in found
    return found


@pytest.mark.slow
@pytest.mark.parametrize("moment", [("fsync", 2), ("fsync", 4), ("fsync", 7), ("rename", 3)])
def test_run_killed_while_logging_resumes_without_duplicates(
    moment: tuple[str, int], here: Path, unbroken: dict[tuple[str, int], float]
) -> None:
    """Another thread, which ends with the process, syncs events to disk and sends them."""
    name = "{}{}".format(*moment)
    args = logged(name)
    assert child(command, args, here, moment, signal.SIGKILL) == -signal.SIGKILL
    assert child(command, args, here, None) == 0
    assert recorded(here, name) == unbroken


@pytest.mark.slow
@pytest.mark.parametrize("place", ["card", "result", "finish", "end"])
def test_killed_after_training_a_run_comes_to_its_end(
    place: str, here: Path, unbroken: dict[tuple[str, int], float]
) -> None:
    args = logged(place)
    assert child(command, args, here, (place, 1), signal.SIGKILL) == -signal.SIGKILL
    assert (here / place / "unfinished.json").exists()
    assert child(command, args, here, None) == 0
    assert recorded(here, place) == unbroken
    client = MlflowClient(f"sqlite:///{here / 'mlflow.db'}")
    assert len(client.search_runs([client.get_experiment_by_name(place).experiment_id])) == 1
    scores = [json.loads((here / name / "result.json").read_text()) for name in (place, "unbroken")]
    assert scores[0]["f1_weighted"] == scores[1]["f1_weighted"]
    assert not (here / place / "unfinished.json").exists()
    weights = [
        (here / name / "model" / "encoder" / "model.safetensors") for name in (place, "unbroken")
    ]
    assert weights[0].read_bytes() == weights[1].read_bytes()


@pytest.mark.slow
def test_a_run_with_long_steps_ends_within_ten_seconds_of_a_signal(here: Path) -> None:
    """This is also what remains if a machine is preempted."""
    args = [*RUN, "output_dir=slow", "tracking.experiment=slow", "trainer.checkpoint_every=null"]
    process = CHILDREN.Process(target=slow_command, args=(args, here, 2.0))
    process.start()
    started = here / "started.txt"
    while process.is_alive() and not (started.exists() and started.read_text().count("\n") == 2):
        time.sleep(0.05)
    # Wait until the second step is in progress.
    time.sleep(0.2)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGTERM)
    before = time.monotonic()
    process.join(100)
    took = time.monotonic() - before
    assert process.exitcode == 143
    assert 1 < took < 10
    (checkpoint,) = (here / "slow" / "checkpoints").glob("checkpoint-*")
    assert json.loads((checkpoint / "state.json").read_text())["state"]["step"] == 2
    assert started.read_text().count("\n") == 2
