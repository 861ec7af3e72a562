"""Several processes train one model as one process would."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from multiprocessing import forkserver
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pandas as pd
import psutil
import pytest
import tiny
import torch
from composing import compose_config
from distributed_child import SETTINGS, command_member, environment, member
from mlflow import MlflowClient
from networks import model_overrides
from omegaconf import OmegaConf
from safetensors.torch import load_file
from torch.distributed import TCPStore

from kinopoisk_ft.conf_path import conf_dir
from kinopoisk_ft.config import prepare
from kinopoisk_ft.errors import UserError
from kinopoisk_ft.serving.predictor import Predictor
from kinopoisk_ft.tracking.sweep import ParentRun
from kinopoisk_ft.training import distributed, strategy
from kinopoisk_ft.training.distributed import processes, share
from kinopoisk_ft.training.memory import told_if_memory_ends
from kinopoisk_ft.training.strategy import check_strategy

CHILDREN = multiprocessing.get_context("forkserver")


@pytest.fixture(scope="module", autouse=True)
def _server() -> None:
    """Start the process that children are forks of: it imports once what they all need."""
    CHILDREN.set_forkserver_preload(["distributed_child"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        patch.setenv("OMP_NUM_THREADS", "1")
        forkserver.ensure_running()


def started(target: Any, count: int, *args: Any) -> list[int | None]:
    """Run a function in so many processes, 0: in one without torchrun; returns exit codes."""
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


def together(
    count: int, folder: Path, kind: str, adapter: str = "none", more: Sequence[str] = (),
    last: int | None = None,
) -> list[int | None]:  # fmt: skip
    """Train a tiny network in so many processes; they break off after a step if it is given."""
    if not kind.endswith("scratch"):  # made here once, for all children to read
        model_overrides(kind)
    return started(member, count, folder, kind, adapter, more, last)


def result(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return found


def compare(one: Path, other: Path) -> None:
    """Compare the values of every step, the predictions and the final weights."""
    expected, found = result(one), result(other)
    assert found["values"].keys() == expected["values"].keys()
    assert found["values"] == pytest.approx(expected["values"], abs=1e-5)
    assert found["scores"] == pytest.approx(expected["scores"], abs=1e-5)
    assert (found["tokens"], found["steps"]) == (expected["tokens"], expected["steps"])
    assert found["best"] == pytest.approx(expected["best"], abs=1e-5)
    mine, theirs = (load_file(folder / "tensors.safetensors") for folder in (other, one))
    torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=0)
    if "outputs" in theirs:
        torch.testing.assert_close(mine["outputs"], theirs["outputs"], atol=1e-5, rtol=0)


NO_DROPOUT = ["model.dropout=0"]


def test_two_processes_train_as_one(tmp_path: Path) -> None:
    for count in (0, 2):
        folder = tmp_path / str(count)
        assert set(together(count, folder, "bert_scratch", more=NO_DROPOUT)) == {0}
    compare(tmp_path / "0", tmp_path / "2")
    # The other rank came to the same, and wrote no checkpoint.
    assert result(tmp_path / "2" / "rank1") == result(tmp_path / "2")
    assert not list((tmp_path / "2" / "rank1").glob("checkpoint-*"))


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize(
    ("kind", "adapter", "more"),
    [
        ("bert_scratch", "none", [*NO_DROPOUT, "trainer.class_weights=balanced"]),
        ("bert_scratch", "none", [*NO_DROPOUT, "trainer/optimizer=sgd", "trainer.accumulate=3"]),
        ("bert_scratch", "lora", [*NO_DROPOUT, "adapter.config.lora_dropout=0"]),
        ("bert_scratch", "pretrain", [*NO_DROPOUT, "trainer.best_metric=loss"]),
        ("bert_scratch", "freeze", [*NO_DROPOUT, "trainer.sampling=balanced"]),
        ("mamba_scratch", "none", []),
        ("mamba_scratch", "pretrain", ["trainer.best_metric=loss"]),
    ],
)
def test_any_number_of_processes(
    kind: str, adapter: str, more: list[str], count: int, tmp_path: Path
) -> None:
    for n in (0, count):
        assert set(together(n, tmp_path / str(n), kind, adapter, more)) == {0}
    compare(tmp_path / "0", tmp_path / str(count))


FSDP = "trainer.strategy=fsdp"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("count", "kind", "adapter", "more"),
    [
        (2, "bert_scratch", "none", NO_DROPOUT),
        (2, "bert_scratch", "lora", [*NO_DROPOUT, "adapter.config.lora_dropout=0"]),
        (2, "bert_scratch", "pretrain", [*NO_DROPOUT, "trainer.best_metric=loss"]),
        (2, "mamba_scratch", "none", ["trainer/optimizer=sgd"]),
        (2, "mamba_scratch", "pretrain", ["trainer.best_metric=loss"]),
        (4, "bert_scratch", "none", NO_DROPOUT),
        (4, "mamba_scratch", "none", ["trainer/optimizer=sgd"]),
    ],
)
def test_a_model_in_parts(
    count: int, kind: str, adapter: str, more: list[str], tmp_path: Path
) -> None:
    assert set(together(0, tmp_path / "0", kind, adapter, more)) == {0}
    assert set(together(count, tmp_path / "parts", kind, adapter, [*more, FSDP])) == {0}
    compare(tmp_path / "0", tmp_path / "parts")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("before", "after"),
    [((4, []), (2, [])), ((2, []), (0, [])), ((0, []), (2, [FSDP])), ((4, [FSDP]), (2, []))],
)
def test_a_checkpoint_knows_no_processes(before: Any, after: Any, tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert set(together(0, whole, "bert_scratch", more=NO_DROPOUT)) == {0}
    count, more = before
    codes = together(count, broken, "bert_scratch", more=[*NO_DROPOUT, *more], last=5)
    assert 0 not in codes
    assert list(broken.glob("checkpoint-*"))
    count, more = after
    assert set(together(count, broken, "bert_scratch", more=[*NO_DROPOUT, *more])) == {0}
    found, expected = result(broken)["values"], result(whole)["values"]
    assert min(int(key.split()[0]) for key in found) == 5  # it did not begin again
    assert found == pytest.approx({key: expected[key] for key in found}, abs=1e-5)
    mine, theirs = (load_file(f / "tensors.safetensors")["outputs"] for f in (broken, whole))
    torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], [FSDP]], ids=["ddp", "fsdp"])
def test_as_many_processes_go_on_bit_for_bit(more: list[str], tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert set(together(2, whole, "bert_scratch", more=more)) == {0}
    assert 0 not in together(2, broken, "bert_scratch", more=more, last=5)
    assert set(together(2, broken, "bert_scratch", more=more)) == {0}
    mine, theirs = (load_file(folder / "tensors.safetensors") for folder in (broken, whole))
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


def test_shares_hold_each_row_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for count in (1, 2, 3, 4):
        monkeypatch.setattr(distributed, "size", lambda count=count: count)
        for rows in (1, 3, 8):
            batch, seen = {"x": torch.arange(rows), "y": torch.ones(rows, 2)}, []
            for number in range(count):
                monkeypatch.setattr(distributed, "rank", lambda number=number: number)
                mine, counts = share(batch)
                assert len(mine["x"]) == len(mine["y"]) > 0
                seen += mine["x"].tolist() if counts else []
            assert sorted(seen) == list(range(rows))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("ddp", 16, 4, "off", "off", "fp32"), "micro_batch_size=4"),
        (("auto", 3, None, "off", "off", "fp32"), "batch_size=3"),
        (("auto", 16, None, "fp32", "off", "fp32"), "prefix cache"),
        (("auto", 16, None, "off", "default", "fp32"), "compile=default"),
        (("fsdp", 16, None, "off", "off", "fp16"), "fp16"),
    ],
)
def test_what_cannot_work_is_refused(
    options: Any, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(strategy, "size", lambda: 4)
    with pytest.raises(UserError, match=told):
        check_strategy(*options)


def test_strategy_and_start_must_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="torchrun"), processes("fsdp", "cpu"):
        pass
    for key, value in environment(1, 2, 1).items():
        monkeypatch.setenv(key, value)
    with pytest.raises(UserError, match="strategy=none"), processes("none", "cpu"):
        pass
    monkeypatch.setattr(distributed, "choose_device", lambda _: torch.device("mps"))
    with pytest.raises(UserError, match="no device of its own"), processes("auto", "auto"):
        pass


def test_a_sweep_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for key, value in environment(0, 2, 1).items():
        monkeypatch.setenv(key, value)
    with pytest.raises(SystemExit):
        ParentRun().on_multirun_start(OmegaConf.create({}))
    assert "start each run with torchrun" in capsys.readouterr().err


def test_restarts_need_a_folder_that_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    for key, value in environment(0, 2, 1).items():
        monkeypatch.setenv(key, value)
    prepare(compose_config(), conf_dir())
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "3")
    prepare(compose_config(["output_dir=run"]), conf_dir())
    with pytest.raises(UserError, match=r"max-restarts 3(.|\n)*to do: .*output_dir=outputs/run1"):
        prepare(compose_config(), conf_dir())


def command_line(here: Path) -> list[str]:
    """Write reviews; returns the arguments of a run that reads them."""
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


@pytest.mark.parametrize(
    ("error", "waits"),
    [(UserError("a mistake"), True), (KeyboardInterrupt(), True),
     (MemoryError(), False), (RuntimeError("a fault"), False)],
)  # fmt: skip
def test_who_fails_alone_does_not_wait_for_the_others(
    error: BaseException, waits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They may be in a step that it has a part in, and never come to their end."""
    store = MagicMock()
    for key, value in environment(1, 2, 1).items():
        monkeypatch.setenv(key, value)
    monkeypatch.setattr(distributed, "rendezvous", lambda _: iter([(store, 1, 2)]))
    monkeypatch.setattr(distributed, "_of_this_start", lambda *_: store)
    monkeypatch.setattr(distributed, "dist", MagicMock())
    monkeypatch.setattr("kinopoisk_ft.training.memory.size", lambda: 2)
    told = UserError if isinstance(error, MemoryError) else type(error)
    with pytest.raises(told), processes("ddp", "cpu"), told_if_memory_ends("training"):
        raise error
    assert store.wait.called == waits


@pytest.mark.slow
def test_a_signal_to_one_process_stops_all(tmp_path: Path) -> None:
    args = [*command_line(tmp_path), "seed=null"]
    assert started(command_member, 2, args, tmp_path, 1) == [143, 143]
    told = [(tmp_path / f"rank{number}" / "stderr.txt").read_text() for number in range(2)]
    assert "stopped by SIGTERM" in told[0]
    assert "stopped" not in told[1]  # said once
    stopped = only_run(tmp_path)
    assert stopped.info.status == "KILLED"
    assert list((tmp_path / "run" / "checkpoints").glob("checkpoint-*"))
    assert started(command_member, 2, args, tmp_path) == [0, 0]
    finished = only_run(tmp_path)
    assert (finished.info.run_id, finished.info.status) == (stopped.info.run_id, "FINISHED")
    assert finished.data.params["seed"] == stopped.data.params["seed"]
    assert "going on after step" in (tmp_path / "run" / "run.log").read_text()
    left = {path.name for path in (tmp_path / "rank1").iterdir()}
    assert left <= {"stderr.txt", "cache"}  # rank 0 alone writes


def torchrun(here: Path, *args: str) -> subprocess.Popen[bytes]:
    """Start torchrun on this machine, quietly; the caller waits for it."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", *args]
    paths = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    own = {"OMP_NUM_THREADS": "1", "PYTHONPATH": paths, "KINOPOISK_FT_CACHE": str(here / "cache")}
    with (here / "torchrun.txt").open("wb") as told:
        return subprocess.Popen(
            command, cwd=here, env={**os.environ, **own}, stdout=told, stderr=told
        )


def losses(here: Path) -> dict[tuple[str, int], float]:
    """Return the losses of each step of the one run, which is finished and has none twice."""
    run = only_run(here)
    assert run.info.status == "FINISHED"
    client = MlflowClient(f"sqlite:///{here / 'mlflow.db'}")
    found = [
        metric
        for key in ("train_loss", "val_loss", "test_loss")
        for metric in client.get_metric_history(run.info.run_id, key)
    ]
    values = {(metric.key, metric.step): metric.value for metric in found}
    assert len(values) == len(found)
    return values


CHILD = str(Path(__file__).with_name("distributed_child.py"))


@pytest.mark.slow
def test_torchrun_with_one_process_trains_as_none_does(tmp_path: Path) -> None:
    places = [tmp_path / "alone", tmp_path / "torchrun"]
    for place in places:
        place.mkdir()
    assert started(command_member, 0, command_line(places[0]), places[0]) == [0]
    process = torchrun(
        places[1], "--nproc-per-node=1", "-m", "kinopoisk_ft", *command_line(places[1])
    )
    assert process.wait(200) == 0, (places[1] / "torchrun.txt").read_text()[-3000:]
    found = losses(places[0])
    assert len(found) > 10
    assert losses(places[1]) == found


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], [FSDP]], ids=["ddp", "fsdp"])
def test_torchrun_restarts_a_killed_rank(more: list[str], tmp_path: Path) -> None:
    places = [tmp_path / "alone", tmp_path / "killed"]
    for place in places:
        place.mkdir()
    assert started(command_member, 0, command_line(places[0]), places[0]) == [0]
    process = torchrun(
        places[1], "--nproc-per-node=2", "--max-restarts=1", CHILD, *command_line(places[1]), *more
    )
    assert process.wait(200) == 0, (places[1] / "torchrun.txt").read_text()[-3000:]
    assert "going on after step 2" in (places[1] / "run" / "run.log").read_text()
    assert losses(places[1]) == pytest.approx(losses(places[0]), abs=1e-5)
    tables = [pd.read_parquet(place / "run" / "predictions.parquet") for place in places]
    columns = [name for name in tables[0] if name.startswith("p_")]
    np.testing.assert_allclose(tables[0][columns], tables[1][columns], atol=1e-5)
    texts = tiny.reviews(8, seed=3)[0]
    models = [Predictor(place / "run" / "model").probabilities(texts) for place in places]
    np.testing.assert_allclose(models[0], models[1], atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("to_all", [False, True])
def test_a_signal_to_torchrun_saves_once(to_all: bool, tmp_path: Path) -> None:
    """It is passed on; a batch system may send it to the processes as well."""
    args = [*command_line(tmp_path), "trainer.epochs=10000", "trainer.checkpoint_every=null"]
    process = torchrun(tmp_path, "--nproc-per-node=2", "-m", "kinopoisk_ft", *args)
    log = tmp_path / "run" / "run.log"
    for _ in range(600):
        if log.exists() and "INFO step" in log.read_text():
            break
        time.sleep(0.1)
    agent = psutil.Process(process.pid)
    for one in [*agent.children(), agent] if to_all else [agent]:
        one.send_signal(signal.SIGTERM)
        time.sleep(0.02)
    assert process.wait(60) != 0
    assert only_run(tmp_path).info.status == "KILLED"
    assert len(list((tmp_path / "run" / "checkpoints").glob("checkpoint-*"))) == 1
    assert log.read_text().count("start the same command again to go on") == 1
