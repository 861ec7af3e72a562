"""Define plugins for Hydra, which searches launchers and sweepers only in this namespace.

They are implemented in `kinopoisk_ft.search` and `kinopoisk_ft.sweeps`. Hydra imports this file at
every start, so it must not import heavy packages.
"""

# Do not use `from __future__ import annotations`: dataclasses would look up annotations in
# `sys.modules`, but Hydra executes this file before it adds the module there.
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.plugins.search_path_plugin import SearchPathPlugin

from kinopoisk_ft.search.sweeper import Search


class SearchSweeper(Search):
    """Make the sweeper `Search` visible to Hydra; conf/sweep/lr_search.yaml selects this class."""


class EngineLauncher(Launcher):
    """A launcher that runs the jobs of a sweep with functions from the module named in `engine`."""

    engine: ClassVar[str]

    def __init__(self, **options: Any) -> None:
        self.options = options

    def setup(self, **context: Any) -> None:
        """Store hydra_context, task_function and config, which all jobs need."""
        self.context = context

    def count_parallel_jobs(self) -> int:
        """Return how many jobs run at the same time."""
        # The engines import joblib or Ray, which most commands do not need.
        return int(import_module(self.engine).count_parallel_jobs(self.options))

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """Run the jobs, and return their results in the order of `job_overrides`."""
        launch_jobs = import_module(self.engine).launch_jobs
        found: list[JobReturn] = launch_jobs(
            self.context, self.options, job_overrides, initial_job_idx
        )
        return found


class PoolLauncher(EngineLauncher):
    """A launcher that runs the jobs in a process pool on this machine.

    Args:
        options: the options of Hydra's joblib launcher, which passes them to `joblib.Parallel`.
    """

    engine = "kinopoisk_ft.sweeps.joblib_jobs"


class SlurmLauncher(EngineLauncher):
    """A launcher that submits the jobs to Slurm, with the options of Hydra's `submitit_slurm`."""

    engine = "kinopoisk_ft.sweeps.slurm_jobs"

    @classmethod
    def check(cls, options: Any) -> None:
        """Raise UserError if no jobs can be submitted now."""
        import_module(cls.engine).check_cluster(Path(options.submitit_folder).parent)


class LauncherConfigs(SearchPathPlugin):
    """A plugin that replaces configs of Hydra's launchers with configs for the launchers above.

    Of two configs with the same name, Hydra uses the one that was stored last. It imports plugins
    in no fixed order, but calls `manipulate_search_path` after all imports.
    """

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Add the configs to Hydra's ConfigStore, and leave the search path unchanged."""
        # The launchers are optional packages (extras `parallel` and `slurm`).
        if find_spec("hydra_plugins.hydra_joblib_launcher") is not None:
            from hydra_plugins.hydra_joblib_launcher.config import JobLibLauncherConf

            _store("joblib", JobLibLauncherConf(_target_="hydra_plugins.kinopoisk_ft.PoolLauncher"))
        if find_spec("hydra_plugins.hydra_submitit_launcher") is not None:
            from hydra_plugins.hydra_submitit_launcher.config import SlurmQueueConf

            own = "hydra_plugins.kinopoisk_ft.SlurmLauncher"
            _store("submitit_slurm", SlurmQueueConf(_target_=own))


def _store(name: str, node: Any) -> None:
    ConfigStore.instance().store(
        group="hydra/launcher", name=name, node=node, provider="kinopoisk_ft"
    )


class RayLauncher(EngineLauncher):
    """A launcher that runs each job as a Ray task in its own process; see `RayConfig`."""

    engine = "kinopoisk_ft.sweeps.ray_jobs"

    @classmethod
    def check(cls, options: Any) -> None:
        """Raise UserError if no jobs can be submitted now."""
        import_module(cls.engine).check_cluster(options)


@dataclass
class RayConfig:
    """The options of `hydra/launcher=ray`; conf/hydra/launcher/ray.yaml explains them."""

    _target_: str = "hydra_plugins.kinopoisk_ft.RayLauncher"
    address: str | None = None
    num_cpus: float = 1.0
    num_gpus: float | None = None
    max_retries: int = 3


# Without Ray, this name is unknown to Hydra, and the command line reports which extra is missing.
if find_spec("ray") is not None:
    _store("ray_base", RayConfig)
