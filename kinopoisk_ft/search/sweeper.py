"""Run a search as a Hydra sweeper."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from kinopoisk_ft.config.command import keep_effective
from kinopoisk_ft.config.prepared import Prepared, flatten
from kinopoisk_ft.errors import LostJobError, UserError
from kinopoisk_ft.run_folder import discard_unfinished
from kinopoisk_ft.search.best_trial import BEST, format_command, write_best
from kinopoisk_ft.search.space import (
    build_space,
    format_overrides,
    format_space,
    list_corners,
    parse_overrides,
    read_current_values,
    sample_latin_hypercube,
)
from kinopoisk_ft.search.study import (
    JOURNAL,
    METRIC,
    TrialQueue,
    check_study,
    open_study,
    require_optuna,
)
from kinopoisk_ft.tracking.sweep import ParentRun, notes_folder

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial

log = logging.getLogger(__name__)


class Search(Sweeper):
    """A Hydra sweeper for Optuna trials; conf/sweep/lr_search.yaml explains the arguments."""

    config: DictConfig
    hydra_context: HydraContext
    launcher: Launcher

    def __init__(
        self,
        n_trials: int,
        n_spread: int,
        seed: int,
        sampler: DictConfig,
        pruner: DictConfig,
        params: DictConfig,
    ) -> None:
        self.n_trials, self.n_spread, self.seed = n_trials, n_spread, seed
        self.sampler, self.pruner, self.params = sampler, pruner, params

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Store Hydra's context and instantiate the launcher."""
        self.config, self.hydra_context = config, hydra_context
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Any:
        """Run all trials, and return a list of results for each batch of parallel trials.

        Raises:
            UserError: Optuna is not installed, or a setting of the search is not valid.
        """
        require_optuna()
        self.parent = ParentRun()
        try:
            self._start(arguments)
        except BaseException:
            self.parent.unlock()
            raise
        # Hydra's own sweeper writes this file, too.
        OmegaConf.save(self.config, self.folder / "multirun.yaml")
        returns = []
        at_once = count_parallel_jobs(self.launcher, self.config.hydra.launcher)
        try:
            for batch in self.trials.iter_batches(self.n_trials, at_once):
                jobs = [self._job_overrides(trial) for trial in batch]
                results = self.launcher.launch(jobs, initial_job_idx=batch[0].number)
                for trial, result in zip(batch, results, strict=True):
                    self._tell_result(trial, result)
                returns.append(results)
        finally:
            # An interrupted search reports the best trial so far.
            self._report_best()
        return returns

    def _start(self, arguments: list[str]) -> None:
        self._check_numbers()
        loader = self.hydra_context.config_loader
        search = parse_overrides(OverridesParser.create(loader), self.params, arguments)
        base = loader.load_sweep_config(self.config, search.fixed)
        space = build_space(search, base)
        about = _describe_search(_prepare(base)) | {
            "space": {key: str(distribution) for key, distribution in space.items()}
        }
        # A value of the wrong type must be reported here, and not in each trial.
        for corner in list_corners(space):
            overrides = [*search.fixed, *format_overrides(corner)]
            _prepare(loader.load_sweep_config(self.config, overrides))
        self.metric = str(base.trainer.best_metric)
        self.fixed = search.fixed
        study = self._open_study(about, start_over=base.rerun)
        # Trial 0 runs the unchanged config, and the next trials cover the space evenly.
        first = [
            read_current_values(space, base),
            *sample_latin_hypercube(space, self.n_spread, self.seed),
        ]
        self.trials = TrialQueue(study, space, self.sampler, self.seed, first)
        # The repetition of a failed trial has a new number, so the table must not list the old one.
        for number in self.trials.retried:
            (notes_folder(self.folder) / f"{number}.json").unlink(missing_ok=True)
        for line in format_space(space):
            log.info("searched: %s", line)

    def _check_numbers(self) -> None:
        for name, least in (("n_trials", 1), ("n_spread", 0), ("seed", 0)):
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise UserError(
                    f"hydra.sweeper.{name}={value} is not a whole number of at least {least}",
                    fix="set seed=<number>: each trial and the search then use this seed"
                    if name == "seed"
                    else f"set hydra.sweeper.{name}=<number>",
                )

    def _open_study(self, about: dict[str, Any], start_over: bool) -> Study:
        self.folder = Path(self.config.hydra.sweep.dir)
        # A search in progress must not lose its journal.
        self.parent.lock(self.config)
        if start_over:
            # Trials must not resume from checkpoints of earlier trials. The option resume=never
            # would also prevent that a trial resumes after Slurm or Ray has restarted it.
            with discard_unfinished(self.folder):
                # The store may refuse the search, and then nothing must be lost.
                self.parent.open(self.config)
            # Folders with other names are not found, so there the trials start over themselves.
            plain: Any = OmegaConf.to_container(self.config.hydra.sweep)
            if plain["subdir"] != "${hydra.job.num}":
                self.fixed = [*self.fixed, "resume=never"]
            (self.folder / JOURNAL).unlink(missing_ok=True)
        resumed = (self.folder / JOURNAL).is_file()
        study = open_study(self.folder, self.pruner, _get_direction(self.metric))
        check_study(study, about)
        study.set_user_attr(METRIC, self.metric)
        if not start_over:
            # The parent run starts after all checks, so a search that is refused leaves no run.
            self.parent.open(self.config, resumed)
        return study

    def _job_overrides(self, trial: FrozenTrial) -> list[str]:
        return [*self.fixed, *format_overrides(trial.params)]

    def _tell_result(self, trial: FrozenTrial, result: JobReturn) -> None:
        failed = result.status == JobStatus.FAILED
        if failed and isinstance(result._return_value, LostJobError):
            # The trial stays in the state RUNNING, so the next command resumes it in its folder.
            return
        value = None if failed else result.return_value
        # `run_job` returns None only for a pruned trial.
        status = "failed" if failed else "pruned" if value is None else "done"
        self.trials.tell(trial.number, status, value)

    def _report_best(self) -> None:
        best = self.trials.find_best()
        if best is None:
            print("no trial has finished")
            return
        value = f"val {self.metric} {best.value:.4f}"
        loader = self.hydra_context.config_loader
        composed = loader.load_sweep_config(self.config, self._job_overrides(best))
        comment = f"Trial {best.number} of a search: {value}."
        write_best(loader, composed, self.folder, comment, self.trials.count_finished())
        self.parent.tracker.tags({"best_trial": str(best.number), "best_validation": value})
        self.parent.tracker.artifact(self.folder / BEST)
        params = "\n".join(f"  {override}" for override in format_overrides(best.params))
        print(f"best: trial {best.number}, {value}\n{params}")
        print(f"to run it: {format_command(composed, self.folder)}")


def _get_direction(metric: str) -> Literal["minimize", "maximize"]:
    from kinopoisk_ft.statistics.metrics import LOWER_IS_BETTER

    return "minimize" if metric in LOWER_IS_BETTER else "maximize"


def _prepare(composed: DictConfig) -> Prepared:
    # The import is local: Hydra imports this module at every start, and `validate` imports torch.
    from kinopoisk_ft.config.validate import prepare_composed

    return prepare_composed(composed)


def _describe_search(prepared: Prepared) -> dict[str, Any]:
    plain: Any = OmegaConf.to_container(prepared.cfg)
    common = flatten(keep_effective(plain))
    return {"config": common, "identity": prepared.tags["kinopoisk_ft.identity"]}


def count_parallel_jobs(launcher: Launcher, options: DictConfig) -> int:
    """Return how many jobs the launcher runs at the same time."""
    if hasattr(launcher, "count_parallel_jobs"):
        return int(launcher.count_parallel_jobs())
    if "submitit_folder" in options:
        # Without this limit, submitit would start all jobs at once, however few cores there are.
        from joblib import cpu_count

        return max(1, cpu_count() // (options.cpus_per_task or 1))
    return 1
