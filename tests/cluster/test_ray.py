"""Run a sweep on a Ray cluster of two hosts, and lose one of them."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest
from hosts import Host, join_hosts, wait_until
from slow_loss import SLOW
from sweeping import DATA, LONG, SMALL, assert_whole_runs, write_reviews

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(find_spec("ray") is None, reason="needs the extra 'ray'"),
]
PORT = 6379
# Seconds to wait for the start or the end of a process on a busy machine.
PATIENCE = 900
VARIABLES = {
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    # How often Ray checks a silent connection, and how long it waits for the answer. With the
    # defaults of 5 and 2 minutes, it notices only after 7 minutes that a job's host is lost.
    "RAY_grpc_client_keepalive_time_ms": "10000",
    "RAY_grpc_client_keepalive_timeout_ms": "20000",
}


class RayCluster:
    """A Ray cluster whose hosts have one core each; the first host is the head.

    Args:
        here: the folder that the hosts share.
        temporary: a folder with a short path, because Ray creates sockets in it. Each host has its
            own folder in it, because two hosts would disturb each other.
    """

    def __init__(self, hosts: list[Host], here: Path, temporary: Path) -> None:
        self.hosts, self.here, self.temporary = hosts, here, temporary
        self.address = f"{hosts[0].address}:{PORT}"

    def start(self) -> None:
        """Start Ray on all hosts, and wait until it runs."""
        for host in self.hosts:
            is_head = host is self.hosts[0]
            role = ["--head", f"--port={PORT}", "--include-dashboard=false"]
            self.run(
                host, "ray.scripts.scripts", "start", "--block", "--num-cpus=1",
                f"--node-ip-address={host.address}", f"--object-store-memory={100 * 2**20}",
                f"--temp-dir={self.temporary / host.address}",
                *(role if is_head else [f"--address={self.address}"]),
            )  # fmt: skip
            output = host.output(self.here)
            wait_until(lambda: "Ray runtime started" in output.read_text(), PATIENCE, output)  # noqa: B023

    def run(self, host: Host, *module: str) -> subprocess.Popen[bytes]:
        """Start a Python module that uses Ray."""
        return host.start(self.here, sys.executable, "-m", *module, more=VARIABLES)


@pytest.fixture
def ray_cluster(tmp_path: Path) -> Iterator[RayCluster]:
    write_reviews(tmp_path)
    (tmp_path / SLOW).touch()
    with tempfile.TemporaryDirectory(prefix="kft_ray_") as folder, join_hosts(2) as hosts:
        started = RayCluster(hosts, tmp_path, Path(folder))
        started.start()
        yield started


def test_a_sweep_survives_the_loss_of_a_host(ray_cluster: RayCluster, tmp_path: Path) -> None:
    head, worker = ray_cluster.hosts
    sweep = ray_cluster.run(
        head, "kinopoisk_ft", "-m", *DATA, *SMALL, *LONG, "output_dir=out", "seed=0,1",
        "trainer.loss._target_=slow_loss.slow_cross_entropy", "hydra/launcher=ray",
        f"hydra.launcher.address={ray_cluster.address}",
    )  # fmt: skip
    folders = [tmp_path / f"out/{number}" for number in (0, 1)]
    outputs = [host.output(tmp_path) for host in ray_cluster.hosts]
    manifests = "checkpoints/checkpoint-*/manifest.json"
    wait_until(
        lambda: sweep.poll() is not None or all(any(one.glob(manifests)) for one in folders),
        PATIENCE, *outputs,
    )  # fmt: skip
    is_lost = [_is_used(folder, worker) for folder in folders]
    assert sorted(is_lost) == [False, True], outputs[0].read_text()
    # Nothing on the other host is told that this one has lost its power.
    worker.plug(False)
    worker.kill()
    (tmp_path / SLOW).unlink()
    assert sweep.wait(PATIENCE) == 0, outputs[0].read_text()
    assert "jobs: 2 done, 0 skipped, 0 failed\n" in outputs[0].read_text()
    assert_whole_runs(tmp_path, is_lost)


def _is_used(folder: Path, host: Host) -> bool:
    """Return whether a process of a host has opened a file in a folder."""
    found = set()
    for process in host.processes():
        with suppress(psutil.Error):
            found |= {Path(file.path) for file in process.open_files()}
    return any(path.is_relative_to(folder) for path in found)
