"""Jobs of a sweep as tasks of Ray; the launcher that Hydra finds is in `hydra_plugins`."""

from __future__ import annotations

import logging
import os
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from hydra.core.hydra_config import HydraConfig
from hydra.core.singleton import Singleton
from hydra.core.utils import (
    JobReturn,
    JobStatus,
    configure_log,
    filter_overrides,
    run_job,
    setup_globals,
)
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict
from ray.exceptions import RayError, RayTaskError

from kinopoisk_ft.errors import RunError, UserError
from kinopoisk_ft.training.signals import GRACE, StopSignals

log = logging.getLogger(__name__)

# Variables of this process that jobs on other machines need as well.
FORWARDED = ("KINOPOISK_FT_", "MLFLOW_", "HF_", "HYDRA_FULL_ERROR", "TOKENIZERS_PARALLELISM")
POLL = 0.5  # seconds between two looks for a signal
STORE = 100 * 2**20  # bytes of shared memory, by default 30% of the machine's; jobs return little


@dataclass(frozen=True)
class Shared:
    """What all jobs of a sweep need, wherever they run."""

    context: HydraContext
    task: TaskFunction
    config: DictConfig
    singletons: Any = field(default_factory=Singleton.get_state)
    folder: Path = field(default_factory=Path.cwd)
    environment: dict[str, str] = field(
        default_factory=lambda: {k: v for k, v in os.environ.items() if k.startswith(FORWARDED)}
    )


class RayJobs:
    """A connection to a cluster and the jobs given to it; when left, those that run are stopped.

    Args:
        address: of a running cluster; None: RAY_ADDRESS, else the one this machine belongs to,
            else one that is started here and ends with the connection.

    Raises:
        UserError: there is no cluster at the address.
    """

    def __init__(self, address: str | None) -> None:
        self._pending: list[Any] = []
        self._connect(address)
        self._signals = StopSignals()

    def _connect(self, address: str | None) -> None:
        how: dict[str, Any] = {"logging_level": "WARNING"}
        try:
            ray.init(address or "auto", **how)
        except ConnectionError as error:
            if address or os.environ.get("RAY_ADDRESS"):
                raise UserError(
                    f"there is no Ray cluster: {error}",
                    where=f"hydra.launcher.address={address or os.environ['RAY_ADDRESS']}",
                    fix="start one with `ray start --head`, or give address=null",
                ) from error
            ray.init("local", include_dashboard=False, object_store_memory=STORE, **how)
        has = ray.cluster_resources()
        log.info("Ray: %g cores, %g GPUs", has.get("CPU", 0), has.get("GPU", 0))

    def __enter__(self) -> RayJobs:
        self._signals.__enter__()  # after Ray's start, which takes SIGTERM for itself
        return self

    def __exit__(self, *error: Any) -> None:
        with suppress(KeyboardInterrupt):  # of a second signal: the jobs need not end well
            for ref in self._pending:
                ray.cancel(ref)  # as Ctrl-C in the job's process: it saves and closes its run
            if self._pending:
                ray.wait(self._pending, num_returns=len(self._pending), timeout=GRACE)
        ray.shutdown()
        self._signals.__exit__(*error)

    def room(self, num_cpus: float, num_gpus: float | None) -> int:
        """Return how many jobs the cluster runs side by side, at least one."""
        wanted = {"CPU": num_cpus, "GPU": _gpus_of_a_job(num_gpus)}
        fit = [
            min((int(has.get(k, 0) // v) for k, v in wanted.items() if v), default=1)
            for has in _machines()
        ]
        return max(1, sum(fit))

    def submit(
        self,
        shared: Shared,
        job_overrides: Sequence[Sequence[str]],
        first: int,
        *,
        num_cpus: float,
        num_gpus: float | None,
        max_retries: int,
    ) -> None:
        """Give jobs to the cluster, which starts them as it has room.

        Raises:
            UserError: no machine of the cluster has room for one.
        """
        num_gpus = _gpus_of_a_job(num_gpus)
        _check_room(num_cpus, num_gpus)
        # A process a job: the next would find this one's memory, threads and CUDA context.
        task = ray.remote(
            max_calls=1, num_cpus=num_cpus, num_gpus=num_gpus, max_retries=max_retries
        )(job)
        kept = ray.put(shared)
        for number, overrides in enumerate(job_overrides, first):
            log.info("#%d: %s", number, " ".join(filter_overrides(overrides)))
            self._pending.append(task.remote(kept, list(overrides), number))

    def results(self) -> list[JobReturn]:
        """Return how the jobs ended, when all have; a lost job does not stop the others.

        Raises:
            Stopped: a signal came.
        """
        found = []
        while self._pending:
            with self._signals.defer():  # what is raised within Ray comes out as KeyboardInterrupt
                ready, _ = ray.wait(self._pending[:1], timeout=POLL)
            if not ready:
                continue
            try:
                found.append(ray.get(self._pending[0]))
            except RayError as error:
                told = error.cause if isinstance(error, RayTaskError) else error
                print(f"error: a job was lost: {told}", file=sys.stderr)
                lost = JobReturn(status=JobStatus.FAILED, overrides=[])
                lost.return_value = RunError()
                found.append(lost)
            self._pending.pop(0)
        return found


def _machines() -> list[dict[str, float]]:
    """Return what each machine of the cluster has."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _gpus_of_a_job(asked: float | None) -> float:
    return float(ray.cluster_resources().get("GPU", 0) >= 1) if asked is None else asked


def _check_room(num_cpus: float, num_gpus: float) -> None:
    """Raise UserError where a job would wait for ever."""
    nodes = _machines()
    wanted = {"CPU": num_cpus, "GPU": num_gpus}
    if not any(all(has.get(k, 0) >= v for k, v in wanted.items()) for has in nodes):
        room = "; ".join(f"{h.get('CPU', 0):g} cores, {h.get('GPU', 0):g} GPUs" for h in nodes)
        raise UserError(
            f"no machine of the cluster has room for a job of {num_cpus:g} cores and "
            f"{num_gpus:g} GPUs; they have {room}",
            where="hydra.launcher.num_cpus, hydra.launcher.num_gpus",
            fix="ask for less",
        )


def job(shared: Shared, overrides: list[str], number: int) -> JobReturn:
    """Run a job in its process, as Hydra's own launcher does in the command's."""
    if not shared.folder.is_dir():
        raise UserError(
            f"machine {socket.gethostname()} does not have the folder {shared.folder}",
            where="hydra/launcher=ray",
            fix="start the sweep in a folder that all machines of the cluster share",
        )
    os.chdir(shared.folder)
    os.environ.update(shared.environment)
    setup_globals()
    Singleton.set_state(shared.singletons)
    config = shared.context.config_loader.load_sweep_config(shared.config, overrides)
    with open_dict(config):
        config.hydra.job.id = ray.get_runtime_context().get_task_id()
        config.hydra.job.num = number
    HydraConfig.instance().set_config(config)
    configure_log(config.hydra.hydra_logging, config.hydra.verbose)
    return run_job(
        hydra_context=shared.context,
        config=config,
        task_function=shared.task,
        job_dir_key="hydra.sweep.dir",
        job_subdir_key="hydra.sweep.subdir",
    )
