"""Check a command before it writes anything, and print the forecast of a sweep."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, NoReturn

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import InstantiationException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from kinopoisk_ft.config.help import explain_error
from kinopoisk_ft.config.prepared import get_overrides, name_checkpoint
from kinopoisk_ft.config.validate import BASIC_SWEEPER, check_config
from kinopoisk_ft.errors import UserError
from kinopoisk_ft.provenance import name_approach
from kinopoisk_ft.training.distributed import torchrun


class Check(Callback):
    """A Hydra callback that reports errors in the config before Hydra creates the output folder.

    With dry_run, it prints the forecast and exits.
    """

    # The composed jobs of a grid, for `Announce`.
    jobs: ClassVar[list[DictConfig]] = []

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Print what the run does, and check its config.

        The check imports the classes of the config, which takes seconds.
        """
        is_dry = config.get("dry_run")
        if not is_dry and torchrun.rank() == 0:
            print(_describe_run(config), flush=True)
        try:
            check_config(config)
        except UserError as error:
            _exit(error, 1)
        if is_dry:
            _print_forecast([config], is_sweep=False)

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Compose and check the jobs of a grid."""
        # Tests and other programs may run several sweeps in one process.
        Check.jobs = []
        if config.hydra.sweeper.get("_target_") != BASIC_SWEEPER:
            if config.get("dry_run"):
                _exit("a search chooses its jobs while it runs, so dry_run cannot list them", 1)
            return
        try:
            Check.jobs = compose_jobs(config)
            if not config.get("dry_run"):
                print(f"sweep of {len(Check.jobs)} jobs, in {config.hydra.sweep.dir}", flush=True)
            for job in Check.jobs:
                check_config(job)
            _check_saved_models(Check.jobs)
        except UserError as error:
            _exit(error, 1)
        except Exception as error:
            # `explain_error` composes a config, which needs a cleared global state.
            GlobalHydra.instance().clear()
            message = explain_error(error, sys.argv[1:])
            if message is None:
                # The sweep itself meets the same error, and ends with a traceback.
                raise
            _exit(message, 2)
        if config.get("dry_run"):
            _print_forecast(Check.jobs)


class Announce(Callback):
    """A Hydra callback that prints the forecast of a grid sweep, once the sweep has a folder."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Print the forecast, and save it for the jobs."""
        if not Check.jobs:
            return
        # This imports torch and scikit-learn, and the first line of output must not wait for them.
        from kinopoisk_ft.sweeps.forecast import forecast, format_forecast, write_forecast

        try:
            expected = forecast(Check.jobs)
        except Exception as error:
            # Some of the jobs may succeed, and each failing job reports what is wrong.
            print(f"warning: no forecast of the sweep: {_describe(error)}", file=sys.stderr)
            return
        print(format_forecast(expected), flush=True)
        write_forecast(expected, Path(config.hydra.sweep.dir).absolute())


def _describe_run(config: DictConfig) -> str:
    """Return a line such as "finetune bert + lora on kinopoisk, seed 42, in outputs/run"."""
    choices = config.hydra.runtime.choices
    name = str(config.get("model", {}).get("name") or "")
    approach = name_checkpoint(name_approach(choices), choices["model"], name)
    seed = "random" if config.get("seed") is None else config.seed
    task, data = choices["task"], choices["data"]
    data = "demo (synthetic reviews)" if data == "demo" else data
    return f"{task} {approach} on {data}, seed {seed}, in {config.hydra.run.dir}"


def _print_forecast(jobs: Sequence[DictConfig], is_sweep: bool = True) -> NoReturn:
    from kinopoisk_ft.sweeps.forecast import forecast, format_forecast

    try:
        print(format_forecast(forecast(jobs, is_sweep)))
    except Exception as error:
        _exit(_describe(error), 1)
    sys.exit(0)


def _describe(error: Exception) -> str:
    # Hydra wraps the errors of the objects that it creates.
    cause = error.__cause__ or error if isinstance(error, InstantiationException) else error
    # The message of a KeyError, for example, is only the key.
    return str(cause) if isinstance(cause, UserError) else f"{type(cause).__name__}: {cause}"


def _exit(error: object, code: int) -> NoReturn:
    # Hydra would only log an exception of a callback.
    if torchrun.rank() == 0:
        print(f"error: {error}", file=sys.stderr)
    sys.exit(code)


def compose_jobs(config: DictConfig) -> list[DictConfig]:
    """Return the configs of all jobs of a grid, in order.

    Raises:
        HydraException, ValueError: an override is not valid.
    """
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

    loader = GlobalHydra.instance().config_loader()
    params = [f"{key}={value}" for key, value in (config.hydra.sweeper.params or {}).items()]
    # As in Hydra's sweeper, a key on the command line replaces the same key of `params`.
    parsed = OverridesParser.create(loader).parse_overrides(params + get_overrides(config.hydra))
    # With None as the largest batch size, there is one batch with all jobs.
    ((*jobs,),) = BasicSweeper.split_arguments(parsed, None)
    return [loader.load_sweep_config(config, list(job)) for job in jobs]


def _check_saved_models(jobs: Sequence[DictConfig]) -> None:
    # The second job would replace the model of the first.
    first: dict[Path, int] = {}
    for number, job in enumerate(jobs):
        if job.get("seed") is None:
            job = job.copy()
            # Each job draws another seed, and none of them is negative.
            job.seed = -1 - number
        # Only pretraining has this option.
        name = job.task.get("save_to")
        if name is None:
            continue
        other = first.setdefault(Path(str(name)).resolve(), number)
        if other != number:
            raise UserError(
                f"jobs {other} and {number} would save their models to the same folder",
                where=f"task.save_to={name}",
                fix="add an option that differs between the jobs, for example "
                "'task.save_to=base_${seed}'",
            )
