"""Test that parallel jobs lose no results under any launcher."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import joblib
import psutil
import pytest
from hydra.core.utils import JobStatus
from hydra.errors import MissingConfigException
from mlflow import MlflowClient
from omegaconf import OmegaConf
from sweeping import (
    DATA,
    LONG,
    SMALL,
    assert_whole_runs,
    environment,
    newest_parent,
    statuses,
    write_reviews,
)

from kinopoisk_ft.config import help
from kinopoisk_ft.errors import UserError
from kinopoisk_ft.reporting.runs import collect
from kinopoisk_ft.sweeps.jobs import read_outcomes
from kinopoisk_ft.training.checkpoint.folder import CheckpointFolder

NEEDS = {
    "joblib": ("hydra_plugins.hydra_joblib_launcher", "parallel"),
    "submitit_local": ("hydra_plugins.hydra_submitit_launcher", "slurm"),
    "ray": ("ray", "ray"),
}


def needs(launcher: str) -> pytest.MarkDecorator:
    module, extra = NEEDS[launcher]
    return pytest.mark.skipif(find_spec(module) is None, reason=f"needs the extra '{extra}'")


LAUNCHERS = [pytest.param(name, marks=needs(name)) for name in NEEDS]


@pytest.mark.parametrize("option", help.LAUNCHER_EXTRAS)
def test_the_missing_extra_is_named(option: str) -> None:
    error = MissingConfigException("no", f"hydra/launcher/{option}", ["basic"])
    assert f"pip install -e '.[{help.LAUNCHER_EXTRAS[option]}]'" in help.explain_error(error, [])


def start(place: Path, *args: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "kinopoisk_ft", "-m", *DATA, *SMALL, *args, "output_dir=out"]
    return subprocess.Popen(
        command, cwd=place, env=environment(place), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_parallel_jobs_lose_nothing(tmp_path: Path, launcher: str) -> None:
    """One of three jobs fails, in a store that does not exist yet; then the sweep is repeated."""
    write_reviews(tmp_path)
    args = [f"hydra/launcher={launcher}", "trainer.budget=steps:6", "trainer.batch_size=8,9,0"]
    args += ["hydra.launcher.n_jobs=2"] if launcher == "joblib" else []
    for counts in ("2 done, 0 skipped, 1 failed", "0 done, 2 skipped, 1 failed"):
        sweep = start(tmp_path, *args)
        out, err = sweep.communicate()
        assert sweep.returncode == 1, err
        assert f"jobs: {counts}\n" in out, err
        assert "trainer.batch_size cannot be 0" in out
        client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
        parent, status = newest_parent(client, "kinopoisk_ft")
        assert status == "FAILED"
        found = collect(client, "kinopoisk_ft", parent)
        assert (len(found.runs), found.unfinished) == (2, 0)
    for i, run in enumerate(sorted(found.runs, key=lambda r: r.settings["trainer.batch_size"])):
        steps = [m.step for m in client.get_metric_history(run.run_id, "train/loss")]
        assert sorted(steps) == list(range(1, 7))
        written = json.loads((tmp_path / "out" / str(i) / "environment.json").read_text())
        threads = {"joblib": max(1, joblib.cpu_count() // 2), "ray": 1}
        assert written["torch_threads"] == threads.get(launcher, joblib.cpu_count())


def wait_for(found: Callable[[], object], process: subprocess.Popen[str]) -> None:
    while not found():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)


def checkpoint(place: Path) -> bool:
    """Return whether the first job has written a checkpoint."""
    return any((place / "out/0/checkpoints").glob("checkpoint-*/manifest.json"))


@pytest.mark.slow
@needs("submitit_local")
def test_a_job_that_submitit_warns_is_requeued_and_resumes(tmp_path: Path) -> None:
    write_reviews(tmp_path)
    sweep = start(tmp_path, "hydra/launcher=submitit_local", *LONG)
    wait_for(lambda: checkpoint(tmp_path), sweep)
    (folder,) = (f for f in (tmp_path / "out/.submitit").iterdir() if f.name.isdigit())
    (task,) = psutil.Process(int(folder.name)).children()
    task.send_signal(signal.SIGUSR2)
    out, err = sweep.communicate()
    assert sweep.returncode == 0, err
    assert "jobs: 1 done, 0 skipped, 0 failed\n" in out
    assert "Requeued job" in "".join(f.read_text() for f in folder.glob("*_log.*"))
    assert_whole_runs(tmp_path, [True])


@pytest.mark.slow
@needs("ray")
def test_a_job_that_ray_loses_resumes_in_another_process(tmp_path: Path) -> None:
    write_reviews(tmp_path)
    sweep = start(tmp_path, "hydra/launcher=ray", *LONG)
    wait_for(lambda: checkpoint(tmp_path), sweep)
    children = psutil.Process(sweep.pid).children(recursive=True)
    (worker,) = (p for p in children if "ray::job" in " ".join(p.cmdline()))
    worker.kill()
    out, err = sweep.communicate()
    assert sweep.returncode == 0, err
    assert "jobs: 1 done, 0 skipped, 0 failed\n" in out
    assert_whole_runs(tmp_path, [True])


@pytest.mark.slow
@needs("ray")
def test_a_job_that_ray_gives_up_is_in_the_table(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from kinopoisk_ft.sweeps import ray_jobs

    # Ray's workers cannot import this file, so Ray must pickle the code of the function.
    def die(*_: object) -> None:
        os._exit(1)

    monkeypatch.setattr(ray_jobs, "job", die)
    config = OmegaConf.create({"hydra": {"sweep": {"dir": str(tmp_path)}}})
    context = {"hydra_context": None, "task_function": None, "config": config}
    options = {"address": None, "num_cpus": 1, "num_gpus": 0, "max_retries": 0}
    (lost,) = ray_jobs.launch_jobs(context, options, [["seed=1"]], 0)
    assert lost.status == JobStatus.FAILED
    (outcome,) = read_outcomes(tmp_path)
    assert (outcome.status, outcome.overrides) == ("unfinished", ["seed=1"])
    assert "died" in outcome.message


@pytest.mark.slow
@needs("ray")
@pytest.mark.usefixtures("heeded")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_the_jobs_of_ray(tmp_path: Path, number: int, code: int) -> None:
    write_reviews(tmp_path)
    sweep = start(tmp_path, "hydra/launcher=ray", *LONG)
    wait_for(lambda: checkpoint(tmp_path), sweep)
    sweep.send_signal(number)
    out, err = sweep.communicate()
    assert sweep.returncode == code, err
    assert f"stopped by {signal.Signals(number).name}" in err
    assert "0 done, 0 skipped, 0 failed, 1 unfinished" in out
    assert statuses(tmp_path) == ["KILLED", "KILLED"]


@pytest.mark.slow
@needs("joblib")
@pytest.mark.usefixtures("heeded")
@pytest.mark.parametrize(
    ("number", "to_group", "code"),
    [(signal.SIGINT, True, 130), (signal.SIGTERM, False, 143)],
    ids=["Ctrl-C", "SIGTERM"],
)
def test_a_signal_stops_the_jobs_of_joblib(
    tmp_path: Path, number: int, to_group: bool, code: int
) -> None:
    """Two jobs run and a third one waits: two are saved, and the third one does not start."""
    write_reviews(tmp_path)
    args = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "seed=1,2,3"]
    sweep = start(tmp_path, *args, *LONG, "trainer.checkpoint_every=100")
    logs = [tmp_path / f"out/{job}/run.log" for job in (0, 1)]
    wait_for(lambda: all(log.exists() and "INFO step 7" in log.read_text() for log in logs), sweep)
    workers = psutil.Process(sweep.pid).children(recursive=True)
    (os.killpg if to_group else os.kill)(sweep.pid, number)
    # Workers that continue would keep the pipes open.
    out, err = sweep.communicate(timeout=120)
    assert sweep.returncode == code, err
    assert psutil.wait_procs(workers, timeout=5)[1] == []
    assert "jobs: 0 done, 0 skipped, 0 failed, 2 unfinished" in out
    assert statuses(tmp_path) == ["KILLED"] * 3
    for log in logs:
        (step,) = re.findall(r"stopped by SIG\w+ after step (\d+) of", log.read_text())
        newest = CheckpointFolder(log.parent / "checkpoints").newest()
        assert newest is not None
        assert newest.plain["state"]["step"] == int(step)


@needs("ray")
def test_a_cluster_that_asks_for_a_token_is_not_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    from kinopoisk_ft.sweeps.ray_jobs import connect

    def refuse(address: str, **_: object) -> None:
        assert address == "auto"
        # This is how Ray 2.60 reports a missing token.
        cause = "Last connection error: ray.exceptions.AuthenticationError: RPC error"
        raise ConnectionError("Failed to connect to Ray cluster") from RuntimeError(cause)

    monkeypatch.setattr("ray.init", refuse)
    with pytest.raises(UserError, match="RAY_AUTH_MODE=token"), connect(None):
        pass


@pytest.mark.slow
@needs("ray")
def test_resources_that_no_machine_of_ray_has_are_refused(tmp_path: Path) -> None:
    write_reviews(tmp_path)
    sweep = start(tmp_path, "hydra/launcher=ray", "hydra.launcher.num_gpus=99")
    err = sweep.communicate()[1]
    assert sweep.returncode == 1
    assert "no machine of the cluster has room for a job of 1 cores and 99 GPUs" in err
    # There is no empty parent run.
    assert not (tmp_path / "mlflow.db").exists()
