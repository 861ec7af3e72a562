"""The launcher `ray`: Hydra takes plugins from the `hydra_plugins` namespace only.

The work is in `kinopoisk_ft.sweeps.ray_jobs`. Hydra imports this module at every start, so it
imports nothing heavy.
"""

# Annotations are not postponed: Hydra runs this file before the module is known by its name, and a
# dataclass would look there for what they mean.
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


@dataclass
class RayConfig:
    """What `conf/hydra/launcher/ray.yaml` fills, with the reasons."""

    _target_: str = "hydra_plugins.kinopoisk_ft_ray.RayLauncher"
    address: str | None = None
    num_cpus: float = 1.0
    num_gpus: float | None = None
    max_retries: int = 3


# Without Ray the name is missing, and the command line tells of the extra before a sweep starts.
if find_spec("ray") is not None:
    ConfigStore.instance().store(
        group="hydra/launcher", name="ray_base", node=RayConfig, provider="kinopoisk_ft"
    )


class RayLauncher(Launcher):
    """Runs each job of a sweep as a Ray task, in a process of its own.

    Args:
        address: of a running cluster; None: the one this machine belongs to, else a local one.
        num_cpus: cores of a job; as many threads compute in it.
        num_gpus: GPUs of a job, a fraction to share one; None: one, if the cluster has any.
        max_retries: how often a job whose process or machine is lost is started again.
    """

    def __init__(
        self, *, address: str | None, num_cpus: float, num_gpus: float | None, max_retries: int
    ) -> None:
        self.address, self.max_retries = address, max_retries
        self.num_cpus, self.num_gpus = num_cpus, num_gpus

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Take what all jobs share."""
        self.hydra_context, self.task_function = hydra_context, task_function
        self.config = config

    def jobs_at_once(self) -> int:
        """Return how many jobs the cluster has room for as it is now."""
        from kinopoisk_ft.sweeps.ray_jobs import RayJobs
        from kinopoisk_ft.training.signals import StopSignals

        with StopSignals(), RayJobs(self.address) as jobs:
            return jobs.room(self.num_cpus, self.num_gpus)

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """Run the jobs and return how they ended, in their order."""
        from kinopoisk_ft.sweeps.ray_jobs import RayJobs, Shared
        from kinopoisk_ft.training.signals import StopSignals

        shared = Shared(self.hydra_context, self.task_function, self.config)
        with StopSignals(), RayJobs(self.address) as jobs:
            jobs.submit(
                shared, job_overrides, initial_job_idx,
                num_cpus=self.num_cpus, num_gpus=self.num_gpus, max_retries=self.max_retries,
            )  # fmt: skip
            return jobs.results()
