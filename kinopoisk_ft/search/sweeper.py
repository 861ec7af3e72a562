"""The Hydra sweeper of a search: asks for trials, launches them as jobs, tells how they ended."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

from kinopoisk_ft.config.command import KEYS_WITHOUT_EFFECT
from kinopoisk_ft.config.groups import get_conf_dir
from kinopoisk_ft.config.prepared import Prepared, flatten
from kinopoisk_ft.errors import UserError
from kinopoisk_ft.search.best_trial import BEST, command, write_best
from kinopoisk_ft.search.space import (
    described,
    ends,
    overrides,
    read_words,
    space,
    spread,
    told,
    usual,
)
from kinopoisk_ft.search.study import (
    JOURNAL,
    METRIC,
    Proposals,
    check_same,
    has_study,
    open_study,
    require_optuna,
)
from kinopoisk_ft.tracking.sweep import ParentRun, notes_folder

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial

log = logging.getLogger(__name__)


class Search(Sweeper):
    """Optuna's trials as Hydra's jobs; conf/sweep/lr_search.yaml says what the arguments are."""

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
        """Take what Hydra gives, and its launcher."""
        self.config, self.hydra_context = config, hydra_context
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Any:
        """Run the search to its end; returns what the launcher returned.

        Raises:
            UserError: Optuna is missing, or the search cannot be made as it was asked for.
        """
        require_optuna()
        self._begin(arguments)
        OmegaConf.save(self.config, self.folder / "multirun.yaml")
        returns = []
        at_once = count_parallel_jobs(self.launcher, self.config.hydra.launcher)
        try:
            for batch in self.proposals.batches(self.n_trials, at_once):
                jobs = [self._job(trial) for trial in batch]
                results = self.launcher.launch(jobs, initial_job_idx=batch[0].number)
                for trial, result in zip(batch, results, strict=True):
                    self._tell(trial, result)
                returns.append(results)
        finally:
            self._keep_best()  # so far, if the search was stopped
        return returns

    def _begin(self, arguments: list[str]) -> None:
        """Read and check what was asked for, and begin the search or go on with it."""
        self._check_numbers()
        loader = self.hydra_context.config_loader
        words = read_words(OverridesParser.create(loader), self.params, arguments)
        base = loader.load_sweep_config(self.config, words.fixed)
        found = space(words, base)
        about = _about(_prepared(base)) | {"space": described(found)}
        for end in ends(found):  # a value of a wrong type is told now, and once
            _prepared(loader.load_sweep_config(self.config, [*words.fixed, *overrides(end)]))
        self.metric = str(base.trainer.best_metric)
        # Trials that are forced to start over must not meet checkpoints of those before.
        self.fixed = [*words.fixed, "resume=never"] if base.rerun else words.fixed
        study = self._open(about, afresh=base.rerun)
        first = [usual(found, base), *spread(found, self.n_spread, self.seed)]
        self.proposals = Proposals(study, found, self.sampler, self.seed, first)
        for number in self.proposals.retried:
            (notes_folder(self.folder) / f"{number}.json").unlink(missing_ok=True)
        for line in told(found):
            log.info("searched: %s", line)

    def _check_numbers(self) -> None:
        for name, least in (("n_trials", 1), ("n_spread", 0), ("seed", 0)):
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise UserError(
                    f"hydra.sweeper.{name}={value}: a search needs a number here",
                    fix=f"give a whole number, {least} or more"
                    + "; it is the seed of all trials: seed=42" * (name == "seed"),
                )

    def _open(self, about: dict[str, Any], afresh: bool) -> Study:
        """Open the study and, once it is known to be of this search, the parent run."""
        self.folder = Path(self.config.hydra.sweep.dir)
        self.folder.mkdir(parents=True, exist_ok=True)
        if afresh:
            (self.folder / JOURNAL).unlink(missing_ok=True)
        goes_on = has_study(self.folder)
        study = open_study(self.folder, self.pruner, _direction(self.metric))
        check_same(study, about)
        study.set_user_attr(METRIC, self.metric)
        self.parent = ParentRun()
        self.parent.open(self.config, goes_on)
        return study

    def _job(self, trial: FrozenTrial) -> list[str]:
        return [*self.fixed, *overrides(trial.params)]

    def _tell(self, trial: FrozenTrial, result: JobReturn) -> None:
        failed = result.status == JobStatus.FAILED
        value = None if failed else result.return_value
        status = "failed" if failed else "pruned" if value is None else "done"
        self.proposals.tell(trial.number, status, value)

    def _keep_best(self) -> None:
        """Write the best config, print how to run it, and tell the parent run."""
        best = self.proposals.best()
        if best is None:
            print("no trial has come to its end")
            return
        value = f"val {self.metric} {best.value:.4f}"
        loader = self.hydra_context.config_loader
        composed = loader.load_sweep_config(self.config, self._job(best))
        write_best(loader, composed, self.folder, f"Trial {best.number} of a search: {value}.")
        self.parent.tags({"best_trial": str(best.number), "best_validation": value})
        self.parent.artifact(self.folder / BEST)
        params = "\n".join(f"  {override}" for override in overrides(best.params))
        print(f"best: trial {best.number}, {value}\n{params}")
        print(f"to run it: {command(composed, self.folder)}")


def _direction(metric: str) -> Literal["minimize", "maximize"]:
    from kinopoisk_ft.statistics.metrics import LOWER_IS_BETTER

    return "minimize" if metric in LOWER_IS_BETTER else "maximize"


def _prepared(composed: DictConfig) -> Prepared:
    """Check a composed config as a trial would."""
    # Hydra imports this module at every start, and `validate` imports torch.
    from kinopoisk_ft.config.validate import prepare

    HydraConfig.instance().set_config(composed)
    cfg = composed.copy()
    with open_dict(cfg):
        del cfg["hydra"]
    return prepare(cfg, get_conf_dir())


def _about(prepared: Prepared) -> dict[str, Any]:
    """Return what all trials have in common: their config, and the digest of the rest."""
    plain: Any = OmegaConf.to_container(prepared.cfg)
    common = flatten({key: value for key, value in plain.items() if key not in KEYS_WITHOUT_EFFECT})
    common.pop("trainer.checkpoint_every")
    return {"config": common, "identity": prepared.tags["kinopoisk_ft.identity"]}


def count_parallel_jobs(launcher: Launcher, options: DictConfig) -> int:
    """Return how many jobs the launcher runs at the same time: ask it, or read its options."""
    if hasattr(launcher, "count_parallel_jobs"):
        return int(launcher.count_parallel_jobs())
    if "array_parallelism" in options:
        return int(options.array_parallelism)
    if "submitit_folder" in options:
        # Submitit starts all jobs of a batch at once, whatever resources the machine has.
        from joblib import cpu_count

        return max(1, cpu_count() // (options.cpus_per_task or 1))
    return 1
