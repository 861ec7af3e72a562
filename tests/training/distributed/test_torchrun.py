"""Check whole runs under torchrun: restarts, and signals to one or all processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest
import tiny
from distributed_child import command_member
from places import HELPERS
from training_processes import FSDP, command_line, losses, only_run, started

from kinopoisk_ft.serving.predictor import Predictor


@pytest.mark.slow
def test_a_signal_to_one_process_stops_all(tmp_path: Path) -> None:
    args = [*command_line(tmp_path), "seed=null"]
    assert started(command_member, 2, args, tmp_path, 1) == [143, 143]
    stderr = [(tmp_path / f"rank{number}" / "stderr.txt").read_text() for number in range(2)]
    assert "stopped by SIGTERM" in stderr[0]
    # Only rank 0 reports the signal.
    assert "stopped" not in stderr[1]
    stopped = only_run(tmp_path)
    assert stopped.info.status == "KILLED"
    assert list((tmp_path / "run" / "checkpoints").glob("checkpoint-*"))
    assert started(command_member, 2, args, tmp_path) == [0, 0]
    finished = only_run(tmp_path)
    assert (finished.info.run_id, finished.info.status) == (stopped.info.run_id, "FINISHED")
    assert finished.data.params["seed"] == stopped.data.params["seed"]
    assert "resumed after step" in (tmp_path / "run" / "run.log").read_text()
    left = {path.name for path in (tmp_path / "rank1").iterdir()}
    # Only rank 0 writes.
    assert left <= {"stderr.txt", "cache"}


def torchrun(here: Path, *args: str) -> subprocess.Popen[bytes]:
    """Start torchrun on this machine without output; the caller waits for it."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", *args]
    paths = os.pathsep.join([str(HELPERS), *sys.path])
    own = {"OMP_NUM_THREADS": "1", "PYTHONPATH": paths, "KINOPOISK_FT_CACHE": str(here / "cache")}
    with (here / "torchrun.txt").open("wb") as output:
        return subprocess.Popen(
            command, cwd=here, env={**os.environ, **own}, stdout=output, stderr=output
        )


CHILD = str(HELPERS / "distributed_child.py")


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
    assert "resumed after step 2" in (places[1] / "run" / "run.log").read_text()
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
    """It is forwarded; a batch system may also send it to the processes."""
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
    assert log.read_text().count("run the same command again to continue") == 1
