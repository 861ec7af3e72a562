"""Run sweeps on a real Slurm cluster, and disturb it."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from slow_loss import GREEDY, SLOW
from slurm_cluster import NODES, Cluster, find_obstacle, wait_for
from sweeping import (
    DATA,
    LONG,
    SMALL,
    assert_whole_runs,
    environment,
    statuses,
    write_reviews,
)

OBSTACLE = find_obstacle()
pytestmark = [pytest.mark.cluster, pytest.mark.skipif(bool(OBSTACLE), reason=OBSTACLE)]
JOB = [
    "hydra.launcher.gpus_per_node=0",
    "hydra.launcher.cpus_per_task=1",
    "hydra.launcher.mem_gb=2",
]


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    started = Cluster(tmp_path_factory.mktemp("slurm"))
    try:
        started.start()
        yield started
    finally:
        started.stop()


@pytest.fixture
def place(cluster: Cluster, tmp_path: Path) -> Iterator[Path]:
    """A folder with reviews, in which trainings are slow until the file SLOW is removed."""
    write_reviews(tmp_path)
    (tmp_path / SLOW).touch()
    yield tmp_path
    cluster.query("scancel", "--me")
    wait_for(lambda: not cluster.query("squeue", "-h"))


class Sweep:
    """A sweep that runs on the cluster."""

    def __init__(self, cluster: Cluster, place: Path, *args: str) -> None:
        command = [sys.executable, "-m", "kinopoisk_ft", "-m", *DATA, *SMALL, *LONG, *JOB,
                   "hydra/launcher=slurm", "trainer.loss._target_=slow_loss.slow_cross_entropy",
                   "output_dir=out", *args]  # fmt: skip
        helpers = str(Path(__file__).parents[1] / "helpers")
        self.cluster, self.place, self.before = cluster, place, set(cluster.list_jobs())
        self.process = subprocess.Popen(
            command, cwd=place, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env=environment(place) | {"SLURM_CONF": cluster.conf, "PYTHONPATH": helpers},
        )  # fmt: skip

    def jobs(self) -> dict[str, tuple[str, str]]:
        """Return {id: (state, node)} for the jobs of this sweep."""
        found = self.cluster.list_jobs().items()
        return {job: value for job, value in found if job not in self.before}

    def wait_for_training(self, *numbers: int) -> None:
        """Wait until jobs have trained for some steps and written a checkpoint."""
        folders = [self.place / "out" / str(number) / "checkpoints" for number in numbers]
        found = "checkpoint-*/manifest.json"
        self.wait_for(lambda: all(any(folder.glob(found)) for folder in folders))

    def wait_for(self, condition: object) -> None:
        def found() -> object:
            assert self.process.poll() is None, self.process.communicate()
            return condition()

        wait_for(found)

    def end(self) -> tuple[int, str, str]:
        """Return exit code, output and errors."""
        out, err = self.process.communicate()
        return self.process.returncode, out, err


def test_a_job_array_uses_both_nodes_and_reports_a_failed_job(
    cluster: Cluster, place: Path
) -> None:
    (place / SLOW).unlink()
    sweep = Sweep(cluster, place, "trainer.budget=steps:6", "trainer.batch_size=8,9,0")
    code, out, err = sweep.end()
    assert code == 1, err
    assert "jobs: 2 done, 0 skipped, 1 failed" in out
    assert "trainer.batch_size cannot be 0" in out
    assert "sacct" not in err
    assert "Downloading" not in err
    (array,) = {job.partition("_")[0] for job in sweep.jobs()}
    assert {job: state for job, (state, _) in sweep.jobs().items()} == {
        f"{array}_{i}": "COMPLETED" for i in range(3)
    }
    assert {node for _, node in sweep.jobs().values()} == {*NODES}
    assert sorted(statuses(place)) == ["FAILED", "FAILED", "FINISHED", "FINISHED"]


def test_a_job_is_requeued_at_its_time_limit_until_it_has_been_too_often(
    cluster: Cluster, place: Path
) -> None:
    """Slurm may send the signal a minute early, so the limit is two minutes."""
    limits = ["timeout_min=2", "signal_delay_s=20", "max_num_timeout=1"]
    limits = [f"hydra.launcher.{limit}" for limit in limits]
    code, out, err = Sweep(cluster, place, *limits).end()
    assert code == 1, err
    assert "reached its time limit too often: raise hydra.launcher.max_num_timeout" in out
    assert "jobs: 0 done, 0 skipped, 0 failed, 1 unfinished" in out
    assert re.findall(r"Requeued job \d+ \((\d) remaining", _read_logs(place)) == ["0"]
    (place / SLOW).unlink()
    code, out, err = Sweep(cluster, place).end()
    assert code == 0, err
    assert_whole_runs(place, [True])


@pytest.mark.parametrize("power_fails", [False, True], ids=["set to DOWN", "no power"])
def test_a_job_on_a_lost_node_resumes_on_another_node(
    cluster: Cluster, place: Path, power_fails: bool
) -> None:
    sweep = Sweep(cluster, place)
    sweep.wait_for_training(0)
    ((job, (_, node)),) = sweep.jobs().items()
    try:
        if power_fails:
            # Slurm notices this after SlurmdTimeout.
            cluster.lose_node(node)
        else:
            cluster.query("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=test")
        sweep.wait_for(lambda: sweep.jobs()[job] == ("RUNNING", *({*NODES} - {node})))
        (place / SLOW).unlink()
        code, out, err = sweep.end()
        assert code == 0, err
        assert "jobs: 1 done, 0 skipped, 0 failed\n" in out
        assert_whole_runs(place, [True])
    finally:
        cluster.query("scontrol", "update", f"NodeName={node}", "State=RESUME")
        if power_fails:
            cluster.start_node(node)


@pytest.mark.parametrize(
    ("cancelled", "first", "then"),
    [("_0", "2 done, 0 skipped, 0 failed, 1 unfinished", "1 done, 2 skipped"),
     ("", "0 done, 0 skipped, 0 failed, 3 unfinished", "3 done, 0 skipped")],
    ids=["one job", "all jobs"],
)  # fmt: skip
def test_cancelled_jobs_are_reported_and_resume(
    cluster: Cluster, place: Path, cancelled: str, first: str, then: str
) -> None:
    """Two of three jobs run, and one waits."""
    sweep = Sweep(cluster, place, "seed=0,1,2")
    sweep.wait_for_training(0, 1)
    array = next(iter(sweep.jobs())).partition("_")[0]
    cluster.query("scancel", array + cancelled)
    (place / SLOW).unlink()
    code, out, err = sweep.end()
    assert code == 1, err
    assert f"jobs: {first}\n" in out
    assert f"Slurm job {array}_0 ended as CANCELLED" in out
    (log,) = (place / "out/.submitit").glob("*_0/*.out")
    assert "stopped by SIGTERM after step" in log.read_text()
    assert "Traceback" not in log.read_text()
    assert sorted(statuses(place)) == (
        ["FAILED", "FINISHED", "FINISHED", "KILLED"] if cancelled else ["FAILED", *["KILLED"] * 2]
    )
    code, out, err = Sweep(cluster, place, "seed=0,1,2").end()
    assert code == 0, err
    assert f"jobs: {then}, 0 failed\n" in out
    assert "resuming the unfinished run" in (place / "out/0/run.log").read_text()


def test_a_search_has_several_batches_and_resumes_a_cancelled_trial(
    cluster: Cluster, place: Path
) -> None:
    """Two trials run at once. The third one starts as soon as the results of both are there."""
    args = ["sweep=lr_search", "hydra.sweeper.n_trials=3", "hydra.launcher.array_parallelism=2"]
    sweep = Sweep(cluster, place, *args)
    sweep.wait_for_training(0)
    array = next(iter(sweep.jobs())).partition("_")[0]
    cluster.query("scancel", f"{array}_0")
    (place / SLOW).unlink()
    code, out, err = sweep.end()
    assert code == 1, err
    assert "jobs: 2 done, 0 skipped, 0 failed, 1 unfinished\n" in out
    code, out, err = Sweep(cluster, place, *args).end()
    assert code == 0, err
    assert "jobs: 3 done, 0 skipped, 0 failed\n" in out
    assert "resuming the unfinished run" in (place / "out/0/run.log").read_text()


@pytest.mark.usefixtures("heeded")
def test_ctrl_c_cancels_the_jobs(cluster: Cluster, place: Path) -> None:
    sweep = Sweep(cluster, place, "seed=0,1,2")
    sweep.wait_for_training(0, 1)
    sweep.process.send_signal(signal.SIGINT)
    code, out, err = sweep.end()
    assert code == 130, err
    assert "0 done, 0 skipped, 0 failed, 2 unfinished" in out
    assert {state for state, _ in sweep.jobs().values()} == {"CANCELLED"}
    assert statuses(place) == ["KILLED"] * 3


def test_jobs_outlive_their_command_and_are_not_started_twice(
    cluster: Cluster, place: Path
) -> None:
    sweep = Sweep(cluster, place)
    sweep.wait_for_training(0)
    sweep.process.kill()
    sweep.end()
    (job,) = sweep.jobs()
    code, _, err = Sweep(cluster, place).end()
    assert code == 1
    assert f"jobs of an earlier command are still running or waiting: {job}\n" in err
    (place / SLOW).unlink()
    wait_for(lambda: cluster.list_jobs()[job][0] == "COMPLETED")
    code, out, err = Sweep(cluster, place).end()
    assert code == 0, err
    assert "jobs: 0 done, 1 skipped, 0 failed\n" in out


def test_a_job_that_exceeds_its_memory_is_killed_and_resumes_with_more(
    cluster: Cluster, place: Path
) -> None:
    sweep = Sweep(cluster, place)
    sweep.wait_for_training(0)
    (place / GREEDY).touch()
    code, out, err = sweep.end()
    assert code == 1, err
    ((job, (state, _)),) = sweep.jobs().items()
    # Without cgroups, Slurm 22 does not call this state OUT_OF_MEMORY.
    assert state == "FAILED"
    killed = rf"exceeded memory limit \(\d+ > {2 * 2**30}\), being killed"
    assert re.search(killed, _read_logs(place))
    assert f"Slurm job {job} ran out of memory: raise hydra.launcher.mem_gb" in out
    assert "jobs: 0 done, 0 skipped, 0 failed, 1 unfinished\n" in out
    for file in (GREEDY, SLOW):
        (place / file).unlink()
    code, out, err = Sweep(cluster, place, "hydra.launcher.mem_gb=3").end()
    assert code == 0, err
    assert_whole_runs(place, [True])


def test_more_memory_than_any_node_has_is_refused(cluster: Cluster, place: Path) -> None:
    code, _, err = Sweep(cluster, place, "hydra.launcher.mem_gb=64").end()
    assert code == 1
    assert "error: Slurm refuses the jobs: sbatch: error: Memory specification can not" in err
    assert "Traceback" not in err


def _read_logs(place: Path) -> str:
    return "".join(file.read_text() for file in (place / "out/.submitit").glob("*/*.out"))
