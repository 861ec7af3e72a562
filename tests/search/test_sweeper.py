"""Test that parallel trials share one study, and that the launcher sets their number."""

from __future__ import annotations

import subprocess
import sys
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from mlflow import MlflowClient
from omegaconf import DictConfig
from searching import SMALL
from sweeping import DATA, environment, newest_parent, write_reviews

from kinopoisk_ft.search.sweeper import count_parallel_jobs
from kinopoisk_ft.sweeps.jobs import read_outcomes

SIDE_BY_SIDE = {
    "joblib": ("hydra_plugins.hydra_joblib_launcher", ["hydra.launcher.n_jobs=2"]),
    "submitit_local": ("hydra_plugins.hydra_submitit_launcher", []),
    "ray": ("ray", ["hydra.launcher.num_cpus=0.5"]),
}


@pytest.mark.slow
@pytest.mark.parametrize("launcher", SIDE_BY_SIDE)
def test_parallel_trials_share_one_study(tmp_path: Path, launcher: str) -> None:
    module, options = SIDE_BY_SIDE[launcher]
    if find_spec(module) is None:
        pytest.skip(f"needs {module}")
    write_reviews(tmp_path)
    args = [
        sys.executable, "-m", "kinopoisk_ft", "sweep=lr_search", *DATA, *SMALL, "model.lr=1e-2",
        f"hydra/launcher={launcher}", *options, "output_dir=out",
        "tracking.log_model=false", "adapter.lr=choice(1e-9,1e-2)",
        "hydra.sweeper.pruner.n_startup_trials=1",
    ]  # fmt: skip
    for n_trials in (2, 6):
        done = subprocess.run(
            [*args, f"hydra.sweeper.n_trials={n_trials}"],
            cwd=tmp_path, env=environment(tmp_path), capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    found = read_outcomes(tmp_path / "out")
    assert [one.job for one in found] == list(range(6))
    assert "pruned" in {one.status for one in found}
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    parent, status = newest_parent(client, "lr_search")
    assert status == "FINISHED"
    runs = [client.get_run(one.run_id) for one in found]
    assert {run.data.tags["mlflow.parentRunId"] for run in runs} == {parent}
    assert runs[1].info.start_time < runs[0].info.end_time


class Counting(BasicLauncher):
    def count_parallel_jobs(self) -> int:
        return 3


@pytest.mark.parametrize(
    ("launcher", "options", "expected"),
    [
        (Counting, {"submitit_folder": "."}, 3),
        (BasicLauncher, {"submitit_folder": ".", "cpus_per_task": 4}, 2),
        (BasicLauncher, {"submitit_folder": ".", "cpus_per_task": None}, 8),
        (BasicLauncher, {}, 1),
    ],
)
def test_as_many_trials_at_once_as_the_launcher_runs_jobs(
    monkeypatch: pytest.MonkeyPatch, launcher: type[BasicLauncher], options: Any, expected: int
) -> None:
    monkeypatch.setattr("joblib.cpu_count", lambda: 8)
    assert count_parallel_jobs(launcher(), DictConfig(options)) == expected


def test_the_room_of_a_ray_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray", reason="needs the extra 'ray'")
    from kinopoisk_ft.sweeps import ray_jobs

    machines = [({"CPU": 8.0, "GPU": 2.0}, True), ({"CPU": 3.0}, True), ({"CPU": 64.0}, False)]
    nodes = [{"Resources": has, "Alive": alive} for has, alive in machines]
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 11.0, "GPU": 2.0})
    monkeypatch.setattr(ray_jobs, "connect", nullcontext)
    asked = [(1, None), (1, 0.5), (2, 0), (8, 1), (16, None)]
    options = [{"address": None, "num_cpus": cpus, "num_gpus": gpus} for cpus, gpus in asked]
    assert [ray_jobs.count_parallel_jobs(one) for one in options] == [2, 4, 5, 1, 1]
