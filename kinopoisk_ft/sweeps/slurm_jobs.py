"""Run the jobs of a sweep on a Slurm cluster, as one job array.

The state of a job is read with `squeue`, because many clusters have no accounting (`sacct`).
"""

from __future__ import annotations

import logging
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import redirect_stderr, suppress
from dataclasses import fields
from io import StringIO
from pathlib import Path
from typing import Any

from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn
from hydra.types import TaskFunction

from kinopoisk_ft.errors import UserError
from kinopoisk_ft.sweeps.jobs import record_lost_jobs
from kinopoisk_ft.training.signals import GRACE_SECONDS, Stopped, StopSignals

log = logging.getLogger(__name__)

# Seconds between two searches for results, and between two calls of squeue, which burden Slurm.
POLL, POLL_STATES = 1.0, 15.0
# States of jobs that have ended. Slurm forgets a job some minutes later.
ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED",
         "BOOT_FAIL", "DEADLINE", "REVOKED", "UNKNOWN"}  # fmt: skip
# Why a job ended, by its state or by messages of Slurm and submitit in its log. Without cgroups,
# the state of a job that exceeds its memory is only FAILED.
REASONS = {
    r"OUT_OF_MEMORY|[Ee]xceeded (job|step) memory limit|oom.kill":
        "ran out of memory: raise hydra.launcher.mem_gb",
    "timed-out too many times":
        "reached its time limit too often: raise hydra.launcher.max_num_timeout",
}  # fmt: skip
# Options of submitit itself; all others are parameters of sbatch.
EXECUTOR_OPTIONS = {"submitit_folder", "max_num_timeout"}


def count_parallel_jobs(options: Mapping[str, Any]) -> int:
    """Return how many jobs run at the same time."""
    return int(options["array_parallelism"])


def launch_jobs(
    context: Mapping[str, Any],
    options: Mapping[str, Any],
    job_overrides: Sequence[Sequence[str]],
    first: int,
) -> list[JobReturn]:
    """Run the jobs on a Slurm cluster, and return the results in order.

    Args:
        context: the keyword arguments of `Launcher.setup`.
        options: the options of Hydra's launcher `submitit_slurm`.
        first: the number of the first job.

    Raises:
        UserError: the cluster refuses the jobs.
        Stopped: a stop signal arrived, and the jobs have been cancelled.
    """
    folder = Path(str(context["config"].hydra.sweep.dir))
    jobs: list[Any] = []
    with StopSignals() as signals:
        try:
            # A signal during the submission would leave `jobs` empty, so no job would be cancelled.
            with signals.defer():
                jobs = _submit(context, options, job_overrides, first)
            lost = _wait_for_jobs(jobs)
        except KeyboardInterrupt:
            _cancel_jobs([job.job_id for job in jobs])
            raise
    found = [lost.get(job.job_id) or _read_result(job) for job in jobs]
    return record_lost_jobs(folder, found, job_overrides, first)


class ClusterTask:
    """A wrapper of Hydra's task function that ends without a traceback after a stop signal.

    submitit's signal handler requeues the job, or raises an exception if the job has been requeued
    too often. During an import, for example, this exception could be mistaken for an import error.
    Therefore, the handler is called only after the task has ended.
    """

    def __init__(self, task: TaskFunction) -> None:
        self.task = task

    def __call__(self, config: Any) -> Any:
        from submitit.core.utils import UncompletedJobError

        try:
            with StopSignals():
                return self.task(config)
        except Stopped as stop:
            # submitit has written the error into the log.
            with suppress(UncompletedJobError):
                signal.raise_signal(stop.number)
            sys.exit(stop.exit_code)


def check_cluster(folder: Path) -> None:
    """Check that jobs can be submitted now.

    Args:
        folder: the folder in which submitit has created a folder for each earlier job, with the id
            of the job as its name.

    Raises:
        UserError: there is no cluster, or earlier jobs have not ended.
    """
    if shutil.which("sbatch") is None:
        raise UserError(
            "this machine is not part of a Slurm cluster, because it has no command `sbatch`",
            where="hydra/launcher=slurm",
            fix="start the sweep on a machine of the cluster, or use hydra/launcher=joblib",
        )
    # A job that has written its result only has to exit, which takes Slurm some seconds.
    earlier = {path.name for path in folder.glob("*") if not any(path.glob("*_result.pkl"))}
    running = [job for job, state in read_states().items() if job in earlier and state not in ENDED]
    if running:
        raise UserError(
            f"jobs of an earlier command are still running or waiting: {', '.join(running)}",
            where=str(folder),
            fix=f"wait until they have ended, or cancel them: scancel {' '.join(running)}",
        )


def _submit(
    context: Mapping[str, Any],
    options: Mapping[str, Any],
    job_overrides: Sequence[Sequence[str]],
    first: int,
) -> list[Any]:
    """Submit the jobs like Hydra's launcher, but do not wait for them with `sacct`."""
    from hydra_plugins.hydra_submitit_launcher.config import BaseQueueConf
    from hydra_plugins.hydra_submitit_launcher.submitit_launcher import SlurmLauncher
    from submitit import AutoExecutor
    from submitit.core.utils import FailedJobError

    launcher = SlurmLauncher(**options)
    launcher.setup(**{**context, "task_function": ClusterTask(context["task_function"])})
    executor = AutoExecutor(
        options["submitit_folder"],
        cluster="slurm",
        slurm_max_num_timeout=options["max_num_timeout"],
    )
    shared = {field.name for field in fields(BaseQueueConf)}
    executor.update_parameters(**{
        name if name in shared else f"slurm_{name}": value
        for name, value in launcher.params.items()
        if name not in EXECUTOR_OPTIONS
    })  # fmt: skip
    calls = [
        (list(overrides), "hydra.sweep.dir", number, f"job_id_for_{number}", Singleton.get_state())
        for number, overrides in enumerate(job_overrides, first)
    ]
    try:
        # submitit also prints the error of sbatch.
        with redirect_stderr(StringIO()):
            jobs: list[Any] = executor.map_array(launcher, *zip(*calls, strict=True))
    except FailedJobError as error:
        raise UserError(
            f"Slurm refuses the jobs: {error}",
            where="hydra.launcher",
            fix="change partition, mem_gb, cpus_per_task, gpus_per_node, timeout_min or account; "
            "`sinfo` lists what the cluster has",
        ) from error
    first_id = jobs[0].job_id.partition("_")[0]
    print(f"submitted Slurm job {first_id}; logs: {jobs[0].paths.folder.parent}", flush=True)
    return jobs


def _wait_for_jobs(jobs: Sequence[Any]) -> dict[str, str]:
    """Wait until all jobs have ended; return {id: message} for each job without a result."""
    waiting = {job.job_id: job for job in jobs}
    lost: dict[str, str] = {}
    ended: dict[str, str] = {}
    next_check = 0.0
    while waiting := {k: job for k, job in waiting.items() if not job.paths.result_pickle.exists()}:
        if time.monotonic() >= next_check:
            next_check = time.monotonic() + POLL_STATES
            before, ended = ended, _find_ended(waiting)
            # A job is lost only at the second check, because a shared disk may show results late.
            for job in before.keys() & ended.keys():
                lost[job] = _describe_end(job, ended[job], waiting.pop(job).paths.stdout)
        time.sleep(POLL)
    return lost


def _read_result(job: Any) -> JobReturn | str:
    from submitit.core.utils import UncompletedJobError

    try:
        result: JobReturn = job.results()[0]
        return result
    except UncompletedJobError:
        # The exception occurred outside the run, for example because of a missing package.
        return f"its log {job.paths.stdout} contains a traceback"


def _find_ended(jobs: Collection[str]) -> dict[str, str]:
    try:
        states = read_states()
    except UserError as error:
        # The controller of the cluster may be restarting.
        log.warning("%s", error.what)
        return {}
    found = {job: states.get(job, "UNKNOWN") for job in jobs}
    return {job: state for job, state in found.items() if state in ENDED}


def _describe_end(job: str, state: str, log_file: Path) -> str:
    lines = log_file.read_text("utf-8", "replace") if log_file.exists() else ""
    found = (text for pattern, text in REASONS.items() if re.search(pattern, state + lines))
    return f"Slurm job {job} {next(found, f'ended as {state}')}; log: {log_file}"


def read_states() -> dict[str, str]:
    """Return {id: state} for the user's jobs that Slurm remembers.

    Raises:
        UserError: `squeue` fails.
    """
    command = ["squeue", "--me", "--array", "--noheader", "--states=all", "--format=%i|%T"]
    found = subprocess.run(command, capture_output=True, text=True)
    if found.returncode:
        raise UserError(
            f"squeue failed: {found.stderr.strip()}",
            where="hydra/launcher=slurm",
            fix="check the cluster with `sinfo`",
        )
    return dict(line.strip().split("|", 1) for line in found.stdout.splitlines())


def _cancel_jobs(jobs: Sequence[str]) -> None:
    # A second stop signal ends the wait.
    with suppress(KeyboardInterrupt):
        if jobs:
            subprocess.run(["scancel", *jobs], check=False)
        end = time.monotonic() + GRACE_SECONDS
        while len(_find_ended(jobs)) < len(jobs) and time.monotonic() < end:
            time.sleep(POLL)
