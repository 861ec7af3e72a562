"""The plugins that Hydra finds: it takes launchers and sweepers from this namespace only.

The work is in `kinopoisk_ft.search` and `kinopoisk_ft.sweeps`. Hydra imports this file at every
start, so it imports nothing heavy.
"""

# Annotations are not postponed: Hydra runs this file before the module is known by its name, and a
# dataclass would look up its annotations there.
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any, ClassVar

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.plugins.search_path_plugin import SearchPathPlugin

from kinopoisk_ft.search.sweeper import Search


class SearchSweeper(Search):
    """`hydra.sweeper._target_` of conf/sweep/lr_search.yaml."""


class EngineLauncher(Launcher):
    """Launch the jobs of a sweep with the functions of one engine's module."""

    engine: ClassVar[str]

    def __init__(self, **options: Any) -> None:
        self.options = options

    def setup(self, **context: Any) -> None:
        """Keep what all jobs need: hydra_context, task_function and config."""
        self.context = context

    def count_parallel_jobs(self) -> int:
        """Return how many jobs run at the same time."""
        return int(import_module(self.engine).count_parallel_jobs(self.options))

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """Run the jobs and return how they ended, in their order."""
        launch_jobs = import_module(self.engine).launch_jobs
        found: list[JobReturn] = launch_jobs(
            self.context, self.options, job_overrides, initial_job_idx
        )
        return found


class PoolLauncher(EngineLauncher):
    """Run the jobs in a pool of processes on this machine.

    Args:
        options: of Hydra's own launcher, which passes them to `joblib.Parallel`.
    """

    engine = "kinopoisk_ft.sweeps.joblib_jobs"


class PoolConfig(SearchPathPlugin):
    """Replace the config of Hydra's joblib launcher by one with the same options for ours.

    Of two configs with the same name Hydra takes the one that was stored last, and it imports
    plugins in no fixed order. It calls this method after all imports.
    """

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Store the config; the search path does not change."""
        if find_spec("hydra_plugins.hydra_joblib_launcher") is None:
            return
        from hydra_plugins.hydra_joblib_launcher.config import JobLibLauncherConf

        node = JobLibLauncherConf(_target_="hydra_plugins.kinopoisk_ft.PoolLauncher")
        ConfigStore.instance().store(
            group="hydra/launcher", name="joblib", node=node, provider="kinopoisk_ft"
        )


class RayLauncher(EngineLauncher):
    """Run each job as a Ray task, in its own process; `RayConfig` has the options."""

    engine = "kinopoisk_ft.sweeps.ray_jobs"


@dataclass
class RayConfig:
    """Options of `hydra/launcher=ray`; conf/hydra/launcher/ray.yaml gives the reasons.

    Args:
        address: of a running cluster; None for the one this machine belongs to, else a local one.
        num_cpus: cores of a job, and the number of its threads.
        num_gpus: GPUs of a job, or a fraction to share one; None for one if the cluster has any.
        max_retries: how often a job starts again after its process or machine is lost.
    """

    _target_: str = "hydra_plugins.kinopoisk_ft.RayLauncher"
    address: str | None = None
    num_cpus: float = 1.0
    num_gpus: float | None = None
    max_retries: int = 3


# Without Ray the name is missing, and the command line names the extra before a sweep starts.
if find_spec("ray") is not None:
    ConfigStore.instance().store(
        group="hydra/launcher", name="ray_base", node=RayConfig, provider="kinopoisk_ft"
    )
