"""Check runs on two hosts whose cable is cut, or of which one dies."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from distributed_child import command_member
from hosts import Host, join_hosts, wait_until
from safetensors.torch import load_file
from server_host import serve_mlflow
from training_processes import command_line, losses, only_run, started

from kinopoisk_ft.tracking.event_log import find_logs
from kinopoisk_ft.tracking.mlflow_names import to_mlflow

pytestmark = pytest.mark.cluster

# 40 steps, which take 8 seconds: a run is in training when it is disturbed after a checkpoint.
LONG = ["trainer.epochs=10", "trainer.eval_every=20", "trainer.checkpoint_every=5",
        "trainer.lr=0.001"]  # fmt: skip
# Seconds until a run ends whose other host is gone.
TIMEOUT = 20
# Seconds for which the MLflow server cannot be reached, and seconds without its database.
OUTAGE, DATABASE_OUTAGE = 60, 10
# Seconds to wait for the start or the end of a run on a busy machine.
PATIENCE = 900


@pytest.fixture
def hosts() -> Iterator[list[Host]]:
    with join_hosts(2) as hosts:
        yield hosts


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The folders of a run in one process, and of a run in two processes of one host."""
    folders = [tmp_path_factory.mktemp("undisturbed") for _ in range(2)]
    for count, folder in zip((0, 2), folders, strict=True):
        assert set(started(command_member, count, [*command_line(folder), *LONG], folder)) == {0}
    return folders


def start(
    host: Host, hosts: list[Host], here: Path, restarts: int, *more: str
) -> subprocess.Popen[bytes]:
    """Start a host's part of a run of two processes, as docs/scale.md writes it."""
    return host.start(
        here, sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1",
        f"--max-restarts={restarts}", "--rdzv-backend=c10d",
        f"--rdzv-endpoint={hosts[0].address}:29400", f"--local-addr={host.address}",
        f"--rdzv-conf=is_host={int(host is hosts[0])},join_timeout={PATIENCE}",
        "-m", "slow_steps", *command_line(here), *LONG, f"trainer.process_timeout={TIMEOUT}",
        *more,
        more={"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1", "GLOO_SOCKET_IFNAME": "eth0",
              "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"},
    )  # fmt: skip


def start_both(hosts: list[Host], here: Path, restarts: int) -> list[subprocess.Popen[bytes]]:
    """Start a run on both hosts, and wait for its first checkpoint."""
    parts = [start(host, hosts, here, restarts) for host in hosts]
    log = here / "run" / "run.log"
    wait_until(
        lambda: log.exists() and "checkpoint after" in log.read_text(),
        PATIENCE, *[host.output(here) for host in hosts],
    )  # fmt: skip
    return parts


def check_end(parts: list[subprocess.Popen[bytes]], here: Path, undisturbed: list[Path]) -> None:
    """Wait for the end; compare all losses, and the bits of the weights."""
    assert [part.wait(PATIENCE) for part in parts] == [0, 0]
    one, two = undisturbed
    assert losses(here) == pytest.approx(losses(one), abs=1e-5)
    for file in ("head.safetensors", "encoder/model.safetensors"):
        found, expected = (load_file(folder / "run" / "model" / file) for folder in (here, two))
        assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_a_short_cut_changes_nothing(
    hosts: list[Host], undisturbed: list[Path], tmp_path: Path
) -> None:
    parts = start_both(hosts, tmp_path, restarts=0)
    hosts[1].plug(False)
    time.sleep(5)
    assert [part.poll() for part in parts] == [None, None]
    hosts[1].plug(True)
    check_end(parts, tmp_path, undisturbed)


def test_a_cut_for_good_ends_the_run(
    hosts: list[Host], undisturbed: list[Path], tmp_path: Path
) -> None:
    parts = start_both(hosts, tmp_path, restarts=0)
    hosts[1].plug(False)
    assert [part.wait(PATIENCE) for part in parts] == [1, 1]
    # torchrun itself then waits for its own connection.
    for host in hosts:
        assert "the connection to another process is lost" in host.output(tmp_path).read_text()
    assert only_run(tmp_path).info.status == "FAILED"
    hosts[1].plug(True)
    check_end([start(host, hosts, tmp_path, 0) for host in hosts], tmp_path, undisturbed)
    assert "resumed after step" in (tmp_path / "run" / "run.log").read_text()


def test_a_host_that_died_joins_again(
    hosts: list[Host], undisturbed: list[Path], tmp_path: Path
) -> None:
    first, _ = start_both(hosts, tmp_path, restarts=3)
    hosts[1].kill()
    second = start(hosts[1], hosts, tmp_path, 3)
    check_end([first, second], tmp_path, undisturbed)
    assert "resumed after step" in (tmp_path / "run" / "run.log").read_text()


def read_progress(here: Path) -> tuple[int, int]:
    """Return how many events of a run are recorded, and how many the store has."""
    logs = find_logs(here / "run")
    return (logs[0].seq, logs[0].state.seq) if logs else (0, 0)


@pytest.mark.skipif(
    find_spec("psycopg") is None or shutil.which("initdb") is None,
    reason="needs PostgreSQL's initdb and the extra 'postgresql'",
)
def test_a_server_that_fails_gets_each_metric_once(tmp_path: Path) -> None:
    """Two hosts train all the time, and the server is a third one."""
    with join_hosts(3) as (*hosts, third), serve_mlflow(third, tmp_path) as server:
        options = ["trainer.epochs=600", "trainer.eval_every=200", "trainer.checkpoint_every=100",
                   "trainer.process_timeout=300", f"tracking.uri={server.uri}"]  # fmt: skip
        parts = [start(host, hosts, tmp_path, 0, *options) for host in hosts]
        outputs = [host.output(tmp_path) for host in (*hosts, third)]

        def wait_for_delivery() -> None:
            """Wait until the store has all events that are recorded now, and some later ones."""
            recorded, _ = read_progress(tmp_path)
            wait_until(lambda: read_progress(tmp_path)[1] > recorded, PATIENCE, *outputs)

        wait_until(lambda: read_progress(tmp_path)[1] > 20, PATIENCE, *outputs)
        before, _ = read_progress(tmp_path)
        third.plug(False)
        time.sleep(OUTAGE)
        recorded, sent = read_progress(tmp_path)
        assert recorded > max(before, sent)
        third.plug(True)
        wait_for_delivery()
        server.stop_mlflow()
        server.start_mlflow()
        wait_for_delivery()
        server.stop_database()
        time.sleep(DATABASE_OUTAGE)
        server.start_database()
        wait_for_delivery()
        (tmp_path / "hurry").touch()
        assert [part.wait(PATIENCE) for part in parts] == [0, 0]
        # On a slow machine, the run ends before the server has everything.
        sync = hosts[0].start(tmp_path, sys.executable, "-m", "kinopoisk_ft", "sync", "run")
        assert sync.wait(PATIENCE) == 0
        found = server.query("SELECT key, step, value FROM metrics")
        status = server.query("SELECT status FROM runs")
    (log,) = find_logs(tmp_path / "run")
    expected = [
        (to_mlflow(key), event["step"], value)
        for event in log.events if event["verb"] == "metrics"
        for key, value in event["values"].items()
    ]  # fmt: skip
    assert len(expected) > 600
    assert sorted(found) == sorted(expected)
    assert status == [("FINISHED",)]
