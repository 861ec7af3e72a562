"""Test how the launcher for Slurm waits for jobs; tests/cluster/test_slurm.py uses a real Slurm."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import DictConfig

from kinopoisk_ft.errors import LostJobError, UserError
from kinopoisk_ft.sweeps import slurm_jobs
from kinopoisk_ft.sweeps.jobs import Outcome, read_outcomes, record_lost_jobs
from kinopoisk_ft.tracking.sweep import ParentRun

FOLDER = ".submitit"
TRACKING = {
    "_target_": "kinopoisk_ft.tracking.offline.OfflineTracker", "uri": None, "artifacts": None,
    "experiment": "x", "log_model": False,
}  # fmt: skip


def make_job(folder: Path, number: str) -> Any:
    place = folder / FOLDER / number
    place.mkdir(parents=True)
    paths = SimpleNamespace(
        result_pickle=place / f"{number}_0_result.pkl", stdout=place / "log.out"
    )
    return SimpleNamespace(job_id=number, paths=paths)


def answer(monkeypatch: pytest.MonkeyPatch, *answers: Mapping[str, str] | Exception) -> None:
    """Let `squeue` give these answers, of which the last one is repeated."""
    left = [*answers]

    def read_states() -> Mapping[str, str]:
        found = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(found, Exception):
            raise found
        return found

    monkeypatch.setattr(slurm_jobs, "read_states", read_states)
    monkeypatch.setattr(slurm_jobs, "POLL", 0)
    monkeypatch.setattr(slurm_jobs, "POLL_STATES", 0)


def test_a_job_that_ends_or_is_forgotten_without_a_result_is_lost(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    jobs = [make_job(tmp_path, number) for number in ("5_0", "5_1", "5_2")]
    jobs[1].paths.result_pickle.touch()
    answer(monkeypatch, {"5_0": "RUNNING", "5_1": "COMPLETED", "5_2": "RUNNING"}, {"5_0": "FAILED"})
    log = jobs[0].paths.stdout
    log.write_text("slurmstepd: error: Detected 1 oom-kill event(s) in StepId=9.0", "utf-8")
    assert slurm_jobs._wait_for_jobs(jobs) == {
        "5_0": f"Slurm job 5_0 ran out of memory: raise hydra.launcher.mem_gb; log: {log}",
        "5_2": f"Slurm job 5_2 ended as UNKNOWN; log: {jobs[2].paths.stdout}",
    }


def test_a_requeued_job_and_a_restarted_controller_are_waited_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    job = make_job(tmp_path, "7")
    error = UserError("squeue failed: connection refused")
    answers = [{"7": "RUNNING"}, {"7": "NODE_FAIL"}, {"7": "PENDING"}, error, {"7": "RUNNING"}]
    answer(monkeypatch, *answers, {"7": "COMPLETED"})
    sleeps = []

    def sleep(_: float) -> None:
        sleeps.append(1)
        if len(sleeps) == len(answers) + 1:
            job.paths.result_pickle.touch()

    monkeypatch.setattr("time.sleep", sleep)
    assert slurm_jobs._wait_for_jobs([job]) == {}


def test_no_second_job_starts_in_the_folder_of_a_running_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("shutil.which", lambda _: "/usr/bin/sbatch")
    make_job(tmp_path, "5_0")
    answer(monkeypatch, {"5_0": "CANCELLED", "6": "RUNNING"}, {"5_0": "PENDING"})
    slurm_jobs.check_cluster(tmp_path / FOLDER)
    with pytest.raises(UserError, match="still running or waiting: 5_0") as error:
        slurm_jobs.check_cluster(tmp_path / FOLDER)
    assert "scancel 5_0" in str(error.value)
    # A job that has written its result only has to exit.
    for number, state in (("7_0", "RUNNING"), ("7_1", "COMPLETING")):
        job = make_job(tmp_path, number)
        job.paths.result_pickle.touch()
        answer(monkeypatch, {number: state})
        slurm_jobs.check_cluster(tmp_path / FOLDER)
    monkeypatch.setattr("shutil.which", lambda _: None)
    with pytest.raises(UserError, match="not part of a Slurm cluster"):
        slurm_jobs.check_cluster(tmp_path)


def test_a_sweep_without_a_cluster_is_refused_before_its_parent_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("shutil.which", lambda _: None)
    launcher = {
        "_target_": "hydra_plugins.kinopoisk_ft.SlurmLauncher",
        "submitit_folder": f"{tmp_path}/{FOLDER}/%j",
    }
    config = {"hydra": {"sweep": {"dir": str(tmp_path / "out")}, "launcher": launcher}}
    with pytest.raises(UserError, match="not part of a Slurm cluster"):
        ParentRun().open(DictConfig(config | {"tracking": TRACKING}))
    assert not (tmp_path / "out").exists()


def test_states_are_read_from_squeue(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, code, "5_0|RUNNING\n7|PENDING\n", "no cluster")

    code = 0
    monkeypatch.setattr("subprocess.run", run)
    assert slurm_jobs.read_states() == {"5_0": "RUNNING", "7": "PENDING"}
    code = 1
    with pytest.raises(UserError, match="squeue failed: no cluster"):
        slurm_jobs.read_states()


def test_submitit_gets_a_signal_after_the_task_has_ended() -> None:
    utils = pytest.importorskip("submitit.core.utils")

    def task(_: object) -> None:
        try:
            signal.raise_signal(signal.SIGUSR2)
        finally:
            calls.append("ended")

    def requeue(*_: object) -> None:
        calls.append("requeued")
        raise utils.UncompletedJobError("timed-out too many times")

    calls: list[str] = []
    before = signal.signal(signal.SIGUSR2, requeue)
    try:
        with pytest.raises(SystemExit) as exit:
            slurm_jobs.ClusterTask(task)(None)
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert exit.value.code == 143
    assert calls == ["ended", "requeued"]


def test_a_lost_job_is_in_the_table_even_if_it_never_started(tmp_path: Path) -> None:
    Outcome(0, "unfinished", ["seed=0"]).write(tmp_path)
    Outcome(1, "failed", ["seed=1"], message="a wrong path").write(tmp_path)
    done = JobReturn(status=JobStatus.COMPLETED)
    overrides = [[f"seed={job}", "output_dir=out"] for job in range(4)]
    found = record_lost_jobs(tmp_path, [*["CANCELLED"] * 3, done], overrides, 0)
    assert [one.status for one in found[:3]] == [JobStatus.FAILED] * 3
    with pytest.raises(LostJobError):
        assert found[0].return_value
    assert found[3] is done
    assert read_outcomes(tmp_path) == [
        Outcome(0, "unfinished", ["seed=0"], message="CANCELLED"),
        Outcome(1, "failed", ["seed=1"], message="a wrong path"),
        Outcome(2, "unfinished", ["seed=2"], message="CANCELLED"),
    ]
