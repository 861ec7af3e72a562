"""Run each job of a sweep as a Ray task in a new process."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from hydra.core.hydra_config import HydraConfig
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, configure_log, filter_overrides, run_job, setup_globals
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict
from ray.exceptions import RayError, RayTaskError

from kinopoisk_ft.errors import UserError
from kinopoisk_ft.sweeps.jobs import record_lost_jobs
from kinopoisk_ft.training.signals import GRACE_SECONDS, StopSignals

log = logging.getLogger(__name__)

# Prefixes of environment variables that are passed on to jobs on other machines.
FORWARDED = (
    *("KINOPOISK_FT_", "MLFLOW_", "HF_", "HYDRA_FULL_ERROR", "TOKENIZERS_PARALLELISM"),
    *("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"),
)
# Seconds between two checks for a signal.
POLL = 0.5
# Size of Ray's object store in bytes. Its default is 30% of the memory, but jobs return little.
STORE = 100 * 2**20


@dataclass(frozen=True)
class JobContext:
    """The data that all jobs of a sweep share."""

    hydra_context: HydraContext
    task_function: TaskFunction
    config: DictConfig
    singletons: Any = field(default_factory=Singleton.get_state)
    folder: Path = field(default_factory=Path.cwd)
    environment: dict[str, str] = field(
        default_factory=lambda: {k: v for k, v in os.environ.items() if k.startswith(FORWARDED)}
    )


def check_cluster(options: Mapping[str, Any]) -> None:
    """Check that jobs can be submitted now.

    Raises:
        UserError: there is no cluster, or no machine has enough resources for a job.
    """
    with connect(options["address"]):
        total, wanted = ray.cluster_resources(), _resources_per_job(options)
        machines = _machine_resources()
    log.info("Ray cluster: %g cores, %g GPUs", total.get("CPU", 0), total.get("GPU", 0))
    if not any(all(has.get(k, 0) >= v for k, v in wanted.items()) for has in machines):
        room = "; ".join(f"{h.get('CPU', 0):g} cores, {h.get('GPU', 0):g} GPUs" for h in machines)
        raise UserError(
            f"no machine of the cluster has room for a job of {wanted['CPU']:g} cores and "
            f"{wanted['GPU']:g} GPUs; the machines have {room}",
            where="hydra.launcher.num_cpus, hydra.launcher.num_gpus",
            fix="lower hydra.launcher.num_cpus or hydra.launcher.num_gpus",
        )


def count_parallel_jobs(options: Mapping[str, Any]) -> int:
    """Return how many jobs the cluster can run at the same time; at least 1."""
    with connect(options["address"]):
        wanted = _resources_per_job(options)
        # A job must fit on one machine, so the jobs are counted for each machine.
        fit = [
            min((int(has.get(k, 0) // v) for k, v in wanted.items() if v), default=1)
            for has in _machine_resources()
        ]
        return max(1, sum(fit))


def launch_jobs(
    context: Mapping[str, Any],
    options: Mapping[str, Any],
    job_overrides: Sequence[Sequence[str]],
    first: int,
) -> list[JobReturn]:
    """Run the jobs on a Ray cluster, and return the results in order.

    Args:
        context: the keyword arguments of `Launcher.setup`.
        options: the options of `RayConfig`.
        first: the number of the first job.

    Raises:
        UserError: there is no cluster.
        Stopped: a stop signal arrived.
    """
    with connect(options["address"]) as signals:
        resources = _resources_per_job(options)
        # Each job gets a new process (max_calls=1), because a process keeps memory, threads and the
        # CUDA context of its last job.
        task = ray.remote(
            max_calls=1,
            num_cpus=resources["CPU"],
            num_gpus=resources["GPU"],
            max_retries=options["max_retries"],
        )(job)
        # Ray copies the shared data to its object store once, and not once per job.
        shared, pending = ray.put(JobContext(**context)), []
        try:
            for number, overrides in enumerate(job_overrides, first):
                log.info("#%d: %s", number, " ".join(filter_overrides(overrides)))
                pending.append(task.remote(shared, list(overrides), number))
            found = _wait_for_jobs(pending, signals)
        finally:
            _cancel_jobs(pending)
    folder = Path(str(context["config"].hydra.sweep.dir))
    return record_lost_jobs(folder, found, job_overrides, first)


@contextmanager
def connect(address: str | None) -> Iterator[StopSignals]:
    """Connect to a Ray cluster until the `with` block ends.

    Args:
        address: address of a running cluster. None means the address in RAY_ADDRESS. If this
            variable is not set, a cluster that already runs on this machine is used. If there is
            no such cluster, a new one is started.

    Raises:
        UserError: there is no cluster at the address, or it asks for a token.
    """
    how: dict[str, Any] = {"logging_level": "WARNING"}
    with StopSignals():
        try:
            ray.init(address or "auto", **how)
        except ConnectionError as error:
            # There is a cluster, so do not start another one.
            if "AuthenticationError" in str(error.__cause__):
                raise UserError(
                    "the Ray cluster asks for its token",
                    where=f"hydra.launcher.address={address or os.environ.get('RAY_ADDRESS')}",
                    fix="set RAY_AUTH_MODE=token on all machines, and copy ~/.ray/auth_token from "
                    "the machine that started the cluster",
                ) from error
            if address or os.environ.get("RAY_ADDRESS"):
                raise UserError(
                    f"there is no Ray cluster at this address: {error}",
                    where=f"hydra.launcher.address={address or os.environ['RAY_ADDRESS']}",
                    fix="start one with `ray start --head`, or unset this option and RAY_ADDRESS",
                ) from error
            ray.init("local", include_dashboard=False, object_store_memory=STORE, **how)
        # `ray.init` has replaced the SIGTERM handler, so the handlers are installed again.
        with StopSignals() as signals:
            try:
                yield signals
            finally:
                ray.shutdown()


def _wait_for_jobs(pending: list[Any], signals: StopSignals) -> list[JobReturn | str]:
    """Return the result of each job, or the reason why there is none."""
    found: list[JobReturn | str] = []
    while pending:
        # If Stopped were raised inside Ray, it would become a plain KeyboardInterrupt.
        with signals.defer():
            # The results are returned in the order of the jobs, so wait only for the first one.
            ready, _ = ray.wait(pending[:1], timeout=POLL)
        if not ready:
            continue
        try:
            found.append(ray.get(pending[0]))
        except RayError as error:
            found.append(str(error.cause if isinstance(error, RayTaskError) else error))
        pending.pop(0)
    return found


def _cancel_jobs(pending: list[Any]) -> None:
    # A second stop signal ends the wait.
    with suppress(KeyboardInterrupt):
        for ref in pending:
            # Without `force`, this interrupts a job like Ctrl-C, so the job can write a checkpoint.
            ray.cancel(ref)
        if pending:
            ray.wait(pending, num_returns=len(pending), timeout=GRACE_SECONDS)


def _machine_resources() -> list[dict[str, float]]:
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _resources_per_job(options: Mapping[str, Any]) -> dict[str, float]:
    gpus = options["num_gpus"]
    if gpus is None:
        gpus = float(ray.cluster_resources().get("GPU", 0) >= 1)
    return {"CPU": options["num_cpus"], "GPU": gpus}


def job(context: JobContext, overrides: list[str], number: int) -> JobReturn:
    """Run one job in this process, like Hydra's default launcher."""
    if not context.folder.is_dir():
        raise UserError(
            f"machine {socket.gethostname()} does not have the folder {context.folder}",
            where="hydra/launcher=ray",
            fix="start the sweep in a folder that all machines of the cluster share",
        )
    # Relative paths in the config start at the folder in which the sweep was started.
    os.chdir(context.folder)
    os.environ.update(context.environment)
    # A new process has neither Hydra's resolvers, such as ${now:}, nor its stored configs.
    setup_globals()
    Singleton.set_state(context.singletons)
    config = context.hydra_context.config_loader.load_sweep_config(context.config, overrides)
    with open_dict(config):
        config.hydra.job.id = ray.get_runtime_context().get_task_id()
        config.hydra.job.num = number
    HydraConfig.instance().set_config(config)
    configure_log(config.hydra.hydra_logging, config.hydra.verbose)
    return run_job(
        hydra_context=context.hydra_context,
        config=config,
        task_function=context.task_function,
        job_dir_key="hydra.sweep.dir",
        job_subdir_key="hydra.sweep.subdir",
    )
