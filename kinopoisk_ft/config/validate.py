"""Check a composed config before any work: every node's keys and values, all errors at once."""

from __future__ import annotations

import functools
import inspect
import logging
import re
import secrets
import typing
from pathlib import Path
from typing import Any, Literal

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.errors import PydanticSchemaGenerationError, PydanticUserError

from kinopoisk_ft.config.command import NO_INFLUENCE, command, from_environment
from kinopoisk_ft.config.prepared import Job, Prepared, flatten
from kinopoisk_ft.config.trust import foreign_targets, with_current_targets
from kinopoisk_ft.errors import UserError, suggest_name
from kinopoisk_ft.provenance import identity, run_tags
from kinopoisk_ft.training.distributed import torchrun

log = logging.getLogger(__name__)

SETTINGS = {
    "seed": int,
    "output_dir": str,
    "resume": Literal["auto", "never"],
    "result_json": str | None,
    "rerun": bool,
}
# Names of options that seed generators, and the largest seed that all of them take: NumPy's old
# generator and scikit-learn read 32 bits.
SEED = re.compile(r"(.*_)?seed|random_state")
MAX_SEED = 2**32 - 1
SEARCH_SWEEPER = "hydra_plugins.kinopoisk_ft.SearchSweeper"
# Overrides that say where results go.
RESULT_PLACES = ("output_dir=", "result_json=", "tracking.", "tracking=")
GROUPS = ("task", "model", "adapter", "data", "trainer", "tracking")


def prepare(cfg: DictConfig, conf: Path, kept_seed: int | None = None) -> Prepared:
    """Resolve and check a composed config, and read what Hydra knows of the command.

    Args:
        conf: folder of the project's config groups, for messages.
        kept_seed: seed of the unfinished run that is resumed; without one, a null seed is drawn.

    Raises:
        UserError: all that is wrong with the config.
    """
    hydra = HydraConfig.get()
    _check_restarts(cfg)
    cfg = cfg.copy()
    try:
        _draw_seed(cfg, kept_seed)
        plain: Any = with_current_targets(
            OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
        )
    except OmegaConfBaseException as error:
        raise UserError(
            f"the config does not resolve: {str(error).splitlines()[0]}",
            where=f"key {error.full_key}" if error.full_key else None,
            fix=f"give it on the command line: {error.full_key}=…" if error.full_key else None,
        ) from error
    errors = check(plain)
    if errors:
        where = f"experiment '{hydra.runtime.choices.get('experiment')}' or the command line"
        raise UserError("\n".join(errors), where=where, fix=f"see --help and {conf}")
    resolved = DictConfig(plain)
    OmegaConf.set_readonly(resolved, True)
    job = current_job()
    return Prepared(
        cfg=resolved,
        choices=(choices := _choices(hydra)),
        tags=_tags(hydra, plain, choices, from_environment(cfg, plain)),
        result_file=_result_file(resolved.result_json, job),
        job=job,
    )


def _choices(hydra: Any) -> dict[str, str]:
    return {key: str(value) for key, value in hydra.runtime.choices.items() if "hydra" not in key}


def _tags(
    hydra: Any, plain: dict[str, Any], choices: dict[str, str], from_variables: dict[str, Any]
) -> dict[str, str]:
    digest = identity({k: v for k, v in plain.items() if k not in NO_INFLUENCE}, choices)
    repeat = command(hydra, {**from_variables, "seed": plain["seed"]})
    return run_tags(choices, plain["seed"], digest, list(hydra.overrides.task), repeat)


def output_dir() -> Path:
    """Return the absolute folder that Hydra made for this run."""
    return Path(HydraConfig.get().runtime.output_dir).absolute()


def current_job() -> Job | None:
    """Return this job of a sweep; None outside one, and before a sweep's jobs start."""
    hydra = HydraConfig.get()
    if hydra.mode != RunMode.MULTIRUN or OmegaConf.is_missing(hydra.job, "num"):
        return None
    searches = hydra.sweeper.get("_target_") == SEARCH_SWEEPER
    return Job(
        sweep_dir=Path(hydra.sweep.dir),
        number=hydra.job.num,
        overrides=[o for o in hydra.overrides.task if not o.startswith(RESULT_PLACES)],
        parallel=hydra.launcher.get("n_jobs", 1) != 1,
        pruner=hydra.sweeper.pruner if searches else None,
    )


def _result_file(result_json: str | None, job: Job | None) -> Path | None:
    """Return the file that was asked for; a job of a sweep puts its number before the ending."""
    if not result_json:
        return None
    file = Path(result_json)
    return file if job is None else file.with_name(f"{file.stem}.{job.number}{file.suffix}")


def _draw_seed(cfg: DictConfig, kept: int | None) -> None:
    """Replace a null seed by that of the run that is resumed, or by a drawn one."""
    if cfg.get("seed") is None and "seed" in cfg:
        cfg.seed = secrets.randbelow(2**31) if kept is None else kept
        log.info("seed %s: %d", "drawn" if kept is None else "drawn at first", cfg.seed)


def _check_restarts(cfg: DictConfig) -> None:
    """Raise UserError where a run that torchrun starts again would not find its folder."""
    folder = str(typing.cast(dict[str, Any], OmegaConf.to_container(cfg)).get("output_dir"))
    if torchrun.max_restarts() and "${now:" in folder:
        raise UserError(
            f"torchrun may start this run again (--max-restarts {torchrun.max_restarts()}), and "
            "its folder is named by the time: it would start over in another one",
            where=f"output_dir={folder}",
            fix="name the folder in which it is to go on, for example output_dir=outputs/run1",
        )


def check(plain: dict[str, Any]) -> list[str]:
    """Return what is wrong with a resolved config, a line each; empty when all is right."""
    if foreign := foreign_targets(plain):
        return foreign
    known = {*SETTINGS, *GROUPS}
    errors = [f"unknown key '{k}': {suggest_name(k, known)}" for k in plain if k not in known]
    errors += [f"key '{k}' is missing" for k in known if k not in plain]
    for key, hint in SETTINGS.items():
        if key in plain:
            errors += _check_value(key, plain[key], hint)
    for group in GROUPS:
        if isinstance(plain.get(group), dict):
            errors += _check_node(group, plain[group])
        elif group in plain:
            errors.append(f"'{group}' must be a group's choice, not the value {plain[group]!r}")
    return errors + _check_seeds(plain)


def _check_seeds(plain: dict[str, Any]) -> list[str]:
    """Return a line for each seed out of range; one that repeats the run's is named once."""
    return [
        f"{key}={value}: a seed is an integer from 0 to {MAX_SEED}"
        for key, value in flatten(plain).items()
        if SEED.fullmatch(key.rpartition(".")[2])
        and isinstance(value, int)
        and not 0 <= value <= MAX_SEED
        and (key == "seed" or value != plain.get("seed"))
    ]


def _check_node(path: str, node: dict[str, Any]) -> list[str]:
    """Bind a node to the signature of its `_target_`; a node without one is plain values."""
    if "_target_" not in node:
        return []
    try:
        target = get_object(node["_target_"])
    except Exception as error:
        return [f"{path}._target_: cannot import '{node['_target_']}': {error}"]
    keys = [k for k in node if not k.startswith("_")]
    parameters = inspect.signature(target).parameters
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    errors = [
        f"unknown option '{path}.{key}': {suggest_name(key, parameters)}"
        for key in keys
        if key not in parameters and not takes_any
    ]
    for flag in ("_partial_", "_recursive_"):
        errors += _check_value(f"{path}.{flag}", node.get(flag, False), bool)
    if not node.get("_partial_"):
        errors += [
            f"option '{path}.{name}' is missing"
            for name, parameter in parameters.items()
            if parameter.default is inspect.Parameter.empty
            and parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
            and name not in keys
        ]
    hints = _hints(target)
    for key in keys:
        made = isinstance(node[key], dict) and "_target_" in node[key]
        if made:
            errors += _check_node(f"{path}.{key}", node[key])
        if made and "Callable" in str(hints.get(key)):
            continue
        if key in hints and target.__module__.startswith("kinopoisk_ft"):
            errors += _check_value(f"{path}.{key}", node[key], hints[key])
    return errors


def _hints(target: Any) -> dict[str, Any]:
    function = target.__init__ if inspect.isclass(target) else target
    if isinstance(function, functools.partial):
        function = function.func
    try:
        return typing.get_type_hints(function)
    except (NameError, TypeError):
        return {}


def _check_value(path: str, value: Any, hint: Any) -> list[str]:
    """Compare a value with an annotation made of plain types; other annotations are not judged."""
    try:
        adapter: TypeAdapter[Any] = TypeAdapter(hint, config=ConfigDict(strict=True))
    except (PydanticSchemaGenerationError, PydanticUserError):
        return []
    try:
        adapter.validate_python(value)
    except ValidationError as error:
        reasons = {e["msg"] for e in error.errors()}
        return [f"{path}={value!r}: {'; or '.join(sorted(reasons))}"]
    return []
