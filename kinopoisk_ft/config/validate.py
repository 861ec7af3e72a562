"""Validate a composed config before data and models are loaded."""

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
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException
from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.errors import PydanticSchemaGenerationError, PydanticUserError

from kinopoisk_ft.config.command import build_command, keep_effective, read_environment_values
from kinopoisk_ft.config.groups import get_conf_dir
from kinopoisk_ft.config.prepared import Job, Prepared, flatten, get_overrides
from kinopoisk_ft.config.trust import check_targets, rename_moved_targets
from kinopoisk_ft.errors import UserError, first_line, suggest_name
from kinopoisk_ft.provenance import compute_identity, make_tags
from kinopoisk_ft.training.distributed import torchrun

log = logging.getLogger(__name__)

SETTINGS = {
    "seed": int,
    "output_dir": str,
    "resume": Literal["auto", "never"],
    "result_json": str | None,
    "rerun": bool,
    "dry_run": bool,
    "tuning_trials": int | None,
}
# Names of options that are seeds of random generators.
SEED_KEY = re.compile(r"(.*_)?seed|random_state")
# NumPy's legacy generator and scikit-learn accept only 32-bit seeds.
MAX_SEED = 2**32 - 1
SEARCH_SWEEPER = "hydra_plugins.kinopoisk_ft.SearchSweeper"
BASIC_SWEEPER = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"
# Prefixes of overrides that only decide where results are written.
OUTPUT_KEYS = ("output_dir=", "result_json=", "tracking.", "tracking=")
GROUPS = ("task", "model", "adapter", "data", "trainer", "tracking")


def prepare(cfg: DictConfig, resumed_seed: int | None = None) -> Prepared:
    """Resolve and validate a composed config.

    Args:
        resumed_seed: seed of the unfinished run in the output folder; None if there is no such run.
            This seed replaces a null seed in the config.

    Raises:
        UserError: the config is invalid. The message lists all errors.
    """
    hydra = HydraConfig.get()
    cfg = cfg.copy()
    _set_seed(cfg, resumed_seed)
    plain = _resolve(cfg, hydra.runtime.choices.get("experiment"))
    job = get_job()
    if job is not None and hydra.sweeper.get("_target_") != BASIC_SWEEPER:
        _number_saved_model(plain["task"], job)
    resolved = DictConfig(plain)
    # No later code may change the config, because it is recorded as it is now.
    OmegaConf.set_readonly(resolved, True)
    choices = {k: str(v) for k, v in hydra.runtime.choices.items() if "hydra" not in k}
    identity = compute_identity(keep_effective(plain), choices)
    fixed = {**read_environment_values(cfg, plain), "seed": plain["seed"]}
    command = build_command(hydra, fixed)
    return Prepared(
        cfg=resolved,
        tags=make_tags(choices, plain["seed"], identity, get_overrides(hydra), command),
        result_file=_name_result_file(resolved.result_json, job),
        job=job,
    )


def check_config(composed: DictConfig) -> None:
    """Raise UserError if the config that Hydra composed for a run is invalid."""
    cfg = _copy_without_hydra(composed)
    if cfg.get("seed") is None:
        # The run itself draws a seed.
        cfg.seed = 0
    _resolve(cfg, composed.hydra.runtime.choices.get("experiment"))


def _resolve(cfg: DictConfig, experiment: str | None) -> dict[str, Any]:
    """Resolve the interpolations of a config, validate it, and return it as a dict.

    Args:
        experiment: the chosen option of the config group `experiment`, for the error message.

    Raises:
        UserError: the config is invalid.
    """
    _check_restarts(cfg)
    try:
        plain: dict[str, Any] = rename_moved_targets(
            OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
        )
    except OmegaConfBaseException as error:
        raise UserError(
            f"the config cannot be resolved: {first_line(error)}",
            where=f"key {error.full_key}" if error.full_key else None,
            fix=f"set it on the command line: {error.full_key}=…" if error.full_key else None,
        ) from error
    errors = find_errors(plain)
    if errors:
        where = "the command line" + (f", or experiment '{experiment}'" if experiment else "")
        fix = f"correct these options; see --help and the config groups in {get_conf_dir()}"
        raise UserError("\n".join(errors), where=where, fix=fix)
    return plain


def prepare_composed(composed: DictConfig) -> Prepared:
    """Validate the config that a sweeper composed for one job."""
    # `prepare` reads the global config of Hydra, which is not yet the config of this job.
    holder = HydraConfig.instance()
    state = holder.cfg
    holder.set_config(composed)
    try:
        return prepare(_copy_without_hydra(composed))
    finally:
        # `set_config` does not accept None, which is the value if no config was set before.
        holder.cfg = state


def _copy_without_hydra(composed: DictConfig) -> DictConfig:
    cfg = composed.copy()
    # Composed configs are in struct mode, in which OmegaConf does not delete keys.
    with open_dict(cfg):
        del cfg["hydra"]
    return cfg


def get_output_dir() -> Path:
    """Return the absolute path of Hydra's output folder for this run."""
    return Path(HydraConfig.get().runtime.output_dir).absolute()


def get_job() -> Job | None:
    """Return the running job of a sweep; None if no job of a sweep is running."""
    hydra = HydraConfig.get()
    # Hydra sets the number of a job only when the job starts.
    if hydra.mode != RunMode.MULTIRUN or OmegaConf.is_missing(hydra.job, "num"):
        return None
    is_search = hydra.sweeper.get("_target_") == SEARCH_SWEEPER
    return Job(
        sweep_dir=Path(hydra.sweep.dir),
        number=hydra.job.num,
        overrides=[o for o in get_overrides(hydra) if not o.startswith(OUTPUT_KEYS)],
        # Only the joblib launcher has this option. Slurm and Ray assign GPUs to jobs themselves.
        parallel=hydra.launcher.get("n_jobs", 1) != 1,
        pruner=hydra.sweeper.pruner if is_search else None,
    )


def _name_result_file(result_json: str | None, job: Job | None) -> Path | None:
    if not result_json:
        return None
    file = Path(result_json)
    # A path such as "." has no name. The run refuses it, because it is a folder.
    if job is None or not file.name:
        return file
    # Otherwise, all jobs of a sweep would write to the same file.
    return file.with_name(f"{file.stem}.{job.number}{file.suffix}")


def _number_saved_model(task: dict[str, Any], job: Job) -> None:
    # Otherwise, all trials of a search would save their pretrained models to the same folder.
    if isinstance(task.get("save_to"), str):
        task["save_to"] = f"{Path(task['save_to'])}.{job.number}"


def _set_seed(cfg: DictConfig, resumed: int | None) -> None:
    try:
        is_null = "seed" in cfg and cfg.seed is None
    except OmegaConfBaseException:
        # `_resolve` reports an interpolation that cannot be resolved.
        return
    if is_null:
        # `secrets` does not depend on the seeds of other random generators.
        cfg.seed = secrets.randbelow(2**31) if resumed is None else resumed
        log.info("%s seed: %d", "random" if resumed is None else "resumed run's", cfg.seed)


def _check_restarts(cfg: DictConfig) -> None:
    # The config is not resolved yet, so an interpolation of the current time is still visible.
    folder = str(typing.cast(dict[str, Any], OmegaConf.to_container(cfg)).get("output_dir"))
    restarts = torchrun.max_restarts()
    if restarts and "${now:" in folder:
        raise UserError(
            f"torchrun may restart this run (--max-restarts {restarts}), but its output_dir "
            "contains the current time, so each restart would start over in a new folder",
            where=f"output_dir={folder}",
            fix="choose a fixed folder, for example output_dir=outputs/run1",
        )


def find_errors(plain: dict[str, Any]) -> list[str]:
    """Return a message for each error in a resolved config."""
    # The checks below import the targets, so they come after the check for forbidden targets.
    if refused := check_targets(plain):
        return refused
    known = {*SETTINGS, *GROUPS}
    errors = [f"unknown key '{k}': {suggest_name(k, known)}" for k in plain if k not in known]
    errors += [f"key '{k}' is missing" for k in known if k not in plain]
    for key, hint in SETTINGS.items():
        if key in plain:
            errors += _check_value(key, plain[key], hint)
    for group in GROUPS:
        if isinstance(plain.get(group), dict):
            errors += _check_node(group, plain[group])
            if "_target_" not in plain[group]:
                errors.append(f"the chosen option of the group '{group}' has no `_target_`")
        elif group in plain:
            errors.append(f"'{group}' must be an option of this config group, not {plain[group]!r}")
    return errors + _check_seed_values(plain)


def _check_seed_values(plain: dict[str, Any]) -> list[str]:
    flat = flatten(plain)
    # Keys such as `trainer.seed` repeat the run's `seed`, so their error is not reported again.
    errors = [
        f"{key}={value}: a seed is an integer from 0 to {MAX_SEED}"
        for key, value in flat.items()
        if SEED_KEY.fullmatch(key.rpartition(".")[2])
        and isinstance(value, int)
        and not 0 <= value <= MAX_SEED
        and (key == "seed" or value != plain.get("seed"))
    ]
    seed, own = plain.get("seed"), flat.get("trainer.seed")
    # For other types, there already is an error; a bool is an int, too.
    if not errors and type(own) is type(seed) is int and own != seed:
        errors.append(
            f"trainer.seed={own} differs from seed={seed}: set only seed, because reports identify "
            "runs by it"
        )
    return errors


def _check_node(path: str, node: dict[str, Any]) -> list[str]:
    if "_target_" not in node:
        return []
    try:
        target = get_object(node["_target_"])
    except Exception as error:
        return [f"{path}._target_: cannot import '{node['_target_']}': {error}"]
    # Keys such as `_target_` and `_convert_` are for `hydra.utils.instantiate`.
    keys = [k for k in node if not k.startswith("_")]
    parameters = inspect.signature(target).parameters
    # A function with **kwargs accepts any option.
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    errors = [
        f"unknown option '{path}.{key}': {suggest_name(key, parameters)}"
        for key in keys
        if key not in parameters and not takes_any
    ]
    for flag in ("_partial_", "_recursive_"):
        errors += _check_value(f"{path}.{flag}", node.get(flag, False), bool)
    # A partial node receives its other arguments later, when it is called.
    if not node.get("_partial_"):
        errors += [
            f"option '{path}.{name}' is missing"
            for name, parameter in parameters.items()
            if parameter.default is inspect.Parameter.empty
            and parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
            and name not in keys
        ]
    hints = get_type_hints(target)
    for key in keys:
        is_node = isinstance(node[key], dict) and "_target_" in node[key]
        if is_node:
            errors += _check_node(f"{path}.{key}", node[key])
        # The node is a dict here and becomes a callable only when it is instantiated.
        if is_node and "Callable" in str(hints.get(key)):
            continue
        # Other packages may accept values that their annotations do not mention.
        if key in hints and target.__module__.startswith("kinopoisk_ft"):
            errors += _check_value(f"{path}.{key}", node[key], hints[key])
    return errors


def get_type_hints(target: Any) -> dict[str, Any]:
    """Return {parameter: type} of a class or function; empty if the types cannot be read."""
    function = target.__init__ if inspect.isclass(target) else target
    if isinstance(function, functools.partial):
        function = function.func
    try:
        return typing.get_type_hints(function)
    # Annotations may name types that are imported only under TYPE_CHECKING.
    except (NameError, TypeError):
        return {}


def _check_value(path: str, value: Any, hint: Any) -> list[str]:
    try:
        # Strict mode does not accept "1" as an int, or 1 as a bool.
        adapter: TypeAdapter[Any] = TypeAdapter(hint, config=ConfigDict(strict=True))
    # Pydantic has no schema for types such as Tensor.
    except (PydanticSchemaGenerationError, PydanticUserError):
        return []
    try:
        adapter.validate_python(value)
    except ValidationError as error:
        # For a union, Pydantic reports one error for each member.
        reasons = {e["msg"] for e in error.errors()}
        return [f"{path}={value!r}: {'; or '.join(sorted(reasons))}"]
    return []
