"""Test that many jobs can log to the server of `make tracking-server` at once without loss."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import pytest
from mlflow import MlflowClient
from places import ROOT
from sweeping import DATA, environment, newest_parent, write_reviews
from syncing import runs_of

from kinopoisk_ft.commands import sync
from kinopoisk_ft.reporting.runs import collect
from kinopoisk_ft.tracking.mlflow import MlflowTracker
from kinopoisk_ft.tracking.mlflow_names import to_mlflow

JOBS, STEPS, METRICS = 20, 120, ("train_loss", "lr", "grad_norm")
# Seconds until a server answers for the first time.
PATIENCE = 120

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("make") is None, reason="needs make"),
]
NO_POSTGRES = find_spec("psycopg") is None or shutil.which("initdb") is None
BACKENDS = [
    "sqlite",
    pytest.param(
        "postgresql",
        marks=pytest.mark.skipif(
            NO_POSTGRES, reason="needs PostgreSQL's initdb and the extra 'postgresql'"
        ),
    ),
]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextmanager
def process(command: list[str], **kwargs: object) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server in its own session and stop it with all its workers."""
    server = subprocess.Popen(command, start_new_session=True, **kwargs)  # type: ignore[call-overload]
    try:
        yield server
    finally:
        os.killpg(server.pid, signal.SIGINT)
        try:
            server.wait(timeout=30)
        # How a server ends is not tested.
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()


@contextmanager
def postgres() -> Iterator[str]:
    """Run a new database; as another user for root, because PostgreSQL refuses to run as root."""
    import psycopg

    user = "nobody" if os.geteuid() == 0 else None
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="kinopoisk_ft_pg_") as folder:
        if user:
            shutil.chown(folder, user)
        init = ["initdb", "-D", f"{folder}/data", "-U", "mlflow", "-A", "trust", "--no-sync"]
        subprocess.run(init, user=user, check=True, stdout=subprocess.DEVNULL, cwd=folder)
        command = ["postgres", "-D", f"{folder}/data", "-p", str(port), "-k", folder, "-F"]
        with process(command, user=user, cwd=folder, stderr=subprocess.DEVNULL):
            url = f"postgresql://mlflow@127.0.0.1:{port}/postgres"
            for _ in range(PATIENCE):
                try:
                    psycopg.connect(url).close()
                    break
                except psycopg.OperationalError:
                    time.sleep(1)
            yield url


def recipe(*variables: str) -> list[str]:
    """Return the command of `make tracking-server` without the target that creates .venv."""
    command = ["make", "-n", "tracking-server", f"VENV={sys.prefix}", *variables]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    lines = shown.replace("\\\n", " ").splitlines()
    (line,) = (line for line in lines if "mlflow server" in line)
    return ["bash", "-c", f"exec {line}"]


@pytest.fixture(params=BACKENDS)
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Start a server and return its address."""
    port = free_port()
    folder = [f"SERVER={tmp_path / 'server'}", f"PORT={port}"]
    (tmp_path / "server").mkdir()
    with postgres() if request.param == "postgresql" else no_database() as backend:
        command = recipe(*folder, *([f"BACKEND={backend}"] if backend else []))
        with process(command, cwd=tmp_path) as started:
            address = f"http://127.0.0.1:{port}"
            for _ in range(PATIENCE):
                assert started.poll() is None
                try:
                    urllib.request.urlopen(f"{address}/health").close()
                    break
                except OSError:
                    time.sleep(1)
            yield address


@contextmanager
def no_database() -> Iterator[None]:
    yield None


def value(job: int, step: int, metric: int) -> float:
    return job + step / 1000 + metric * 100


def kept(job: int) -> str:
    return f"job {job}: kept by the server"


def work(address: str, job: int, folder: Path) -> None:
    """Log like a run, in several batches, from a separate folder."""
    tracker = MlflowTracker(uri=address, artifacts=None, experiment="many", log_model=False)
    config = {"seed": job, "trainer": {f"option_{i}": i for i in range(60)}}
    folder.mkdir()
    (folder / "note.txt").write_text(kept(job))
    tracker.start(f"job {job}", config, {"job": str(job)}, folder=folder)
    for step in range(1, STEPS + 1):
        tracker.metrics({key: value(job, step, i) for i, key in enumerate(METRICS)}, step)
        if step % 10 == 0:
            tracker.flush()
    tracker.artifact(folder / "note.txt")
    tracker.finish("FINISHED")


def test_twenty_jobs_at_once_lose_no_metric(server: str, tmp_path: Path) -> None:
    first = MlflowTracker(uri=server, artifacts=None, experiment="many", log_model=False)
    first.start("makes the experiment", {}, {}, folder=tmp_path / "first")
    first.finish("FINISHED")
    with ThreadPoolExecutor(JOBS) as pool:
        list(pool.map(lambda job: work(server, job, tmp_path / f"job{job}"), range(JOBS)))
    # On a busy machine, the server may be too slow for a job, which then leaves a rest for `sync`.
    assert sync.main([str(tmp_path)]) == 0
    client = MlflowClient(server)
    runs = [run for run in runs_of(client, "many") if "job" in run.data.tags]
    runs.sort(key=lambda run: int(run.data.tags["job"]))
    assert len(runs) == JOBS
    for job, run in enumerate(runs):
        run_id = run.info.run_id
        assert run.info.status == "FINISHED"
        assert (run.data.tags["job"], len(run.data.params)) == (str(job), 61)
        for i, key in enumerate(METRICS):
            history = sorted(
                client.get_metric_history(run_id, to_mlflow(key)), key=lambda m: m.step
            )
            expected = [(step, value(job, step, i)) for step in range(1, STEPS + 1)]
            assert [(m.step, m.value) for m in history] == expected
        assert Path(client.download_artifacts(run_id, "note.txt")).read_text() == kept(job)
    assert any((tmp_path / "server").rglob("note.txt"))


@pytest.mark.skipif(
    find_spec("hydra_plugins.hydra_joblib_launcher") is None, reason="needs the extra 'parallel'"
)
def test_a_sweep_reports_to_the_server(server: str, tmp_path: Path) -> None:
    write_reviews(tmp_path)
    command = [
        sys.executable, "-m", "kinopoisk_ft", "-m", *DATA, "model=tfidf", "seed=0,1",
        "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "output_dir=out",
    ]  # fmt: skip
    variables = {**environment(tmp_path), "MLFLOW_TRACKING_URI": server}
    for counts in ("2 done, 0 skipped, 0 failed", "0 done, 2 skipped, 0 failed"):
        done = subprocess.run(
            command, cwd=tmp_path, env=variables, capture_output=True, text=True, check=False
        )
        assert f"jobs: {counts}\n" in done.stdout, done.stderr
    client = MlflowClient(server)
    parent, status = newest_parent(client, "kinopoisk_ft")
    assert status == "FINISHED"
    runs = collect(client, "kinopoisk_ft", parent).runs
    assert {run.seed for run in runs} == {"0", "1"}
    assert not (tmp_path / "mlflow.db").exists()
