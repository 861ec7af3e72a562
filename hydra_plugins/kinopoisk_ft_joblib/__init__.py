"""The launcher `joblib`, whose jobs are told of signals: Hydra takes plugins from here only.

The work is in Hydra's own plugin and in `kinopoisk_ft.sweeps.joblib_jobs`. Hydra imports this
module at every start, so it imports nothing heavy.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.plugins.search_path_plugin import SearchPathPlugin
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class PoolConfig(SearchPathPlugin):
    """Puts this launcher in the place of Hydra's, with the same options, where that is installed.

    Of two configs with a name Hydra takes the one stored last, and it imports plugins in no certain
    order; this is called when all are.
    """

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Store the config; the search path stays."""
        if find_spec("hydra_plugins.hydra_joblib_launcher") is None:
            return
        from hydra_plugins.hydra_joblib_launcher.config import JobLibLauncherConf

        node = JobLibLauncherConf(_target_="hydra_plugins.kinopoisk_ft_joblib.PoolLauncher")
        ConfigStore.instance().store(
            group="hydra/launcher", name="joblib", node=node, provider="kinopoisk_ft"
        )


class PoolLauncher(Launcher):
    """Runs the jobs of a sweep in a pool of processes on this machine.

    Args:
        options: of Hydra's own launcher, which gives them to `joblib.Parallel`.
    """

    def __init__(self, **options: Any) -> None:
        from hydra_plugins.hydra_joblib_launcher.joblib_launcher import JoblibLauncher
        from joblib import effective_n_jobs

        self._joblib = JoblibLauncher(**options)
        self.processes = int(effective_n_jobs(options["n_jobs"]))

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Take what all jobs share."""
        from kinopoisk_ft.sweeps.joblib_jobs import Pooled

        task = Pooled(task_function) if self.processes > 1 else task_function
        self._joblib.setup(hydra_context=hydra_context, task_function=task, config=config)

    def jobs_at_once(self) -> int:
        """Return how many jobs run side by side."""
        return self.processes

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """Run the jobs and return how they ended, in their order."""
        from kinopoisk_ft.sweeps.joblib_jobs import stoppable

        if self.processes == 1:  # in this process, where a job hears of signals itself
            return self._joblib.launch(job_overrides, initial_job_idx)
        return stoppable(lambda: self._joblib.launch(job_overrides, initial_job_idx))
