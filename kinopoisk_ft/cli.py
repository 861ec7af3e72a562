"""The command line: help at once, one clear message for a mistake, Hydra for the rest.

Heavy packages are imported only when a run starts, so that `--help` and typos answer at once.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kinopoisk_ft import ranks
from kinopoisk_ft.conf_path import conf_dir, group_options
from kinopoisk_ft.errors import UserError, nearest

if TYPE_CHECKING:
    from omegaconf import DictConfig

log = logging.getLogger(__name__)

USAGE = """\
Fine-tune one text classifier and log what a fair comparison needs.

  python -m kinopoisk_ft model=bert adapter=lora data=kinopoisk
  python -m kinopoisk_ft model=mamba adapter=none trainer.epochs=1
  python -m kinopoisk_ft --multirun model=bert,mamba adapter=none,lora seed=0,1,2
  python -m kinopoisk_ft sweep=study
  python -m kinopoisk_ft sweep=lr_search model=bert_scratch adapter=lora data=demo

group=option chooses a file of a group, group.key=value changes a value.
Flags: --multirun (-m), --config-dir DIR (your own groups), --cfg job (show
the composed config and stop), --hydra-help.
A sweep skips jobs that are finished and identical; rerun=true trains them again.
Without a network: tracking=offline, and later python -m kinopoisk_ft.sync <output_dir>.
In parallel: hydra/launcher=joblib hydra.launcher.n_jobs=2 (extra 'parallel'), on a cluster
hydra/launcher=slurm (extra 'slurm') or hydra/launcher=ray (extra 'ray'); see docs/scale.md.
One run in several processes: torchrun --nproc-per-node 2 -m kinopoisk_ft ...
"""

# Of torchrun's processes the first alone has a folder and a log.
NO_FOLDER = ["hydra.run.dir=.", "hydra.output_subdir=null", "hydra/job_logging=none",
             "hydra/hydra_logging=none"]  # fmt: skip

# Hydra's flags that are followed by a value.
VALUED = {"--config-dir", "-cd", "--config-path", "-cp", "--config-name", "-cn",
          "--package", "-p", "--cfg", "-c"}  # fmt: skip
# Launchers that are there when their extra is installed.
EXTRAS = {"joblib": "parallel", "submitit_slurm": "slurm", "submitit_local": "slurm",
          "ray_base": "ray"}  # fmt: skip
# Of a sweep's parent, by exit code: signals that stop a run give the last two.
STATUSES = {0: "FINISHED", 130: "KILLED", 143: "KILLED"}


class RunError(Exception):
    """A job failed and its message has been shown."""


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0, 1 for a failure, 2 for bad usage."""
    args = sys.argv[1:] if argv is None else argv
    if {"--help", "-h"} & set(args):
        print(help_text(_config_dirs(args)))
        return 0
    # Hydra then raises instead of printing its own report, and the message is ours to write.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    sys.argv = [sys.argv[0], *_flags_first(args), *(NO_FOLDER if ranks.rank() else [])]
    import hydra

    from kinopoisk_ft.targets import trust_held

    launch = hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="train")(_job)
    code = 1  # of an error that nobody foresaw, such as a worker that was killed
    with trust_held():
        try:
            code = _exit_code(launch, args)
        finally:
            code = _close_sweep(code)
    return code


def _exit_code(launch: Callable[[], None], args: list[str]) -> int:
    from hydra.errors import HydraException

    try:
        _check_folders(args)
        launch()
    except RunError:
        return 1
    except KeyboardInterrupt as stop:
        if ranks.rank() == 0:
            print(str(stop) or "interrupted", file=sys.stderr)
        return getattr(stop, "exit_code", 130)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except (HydraException, ValueError) as error:
        print(f"error: {_explain(error, args)}", file=sys.stderr)
        return 2
    except TypeError as error:
        if not in_composing(error):
            raise
        told = "a group's choice is a name, or a list of names"
        print(f"error: Hydra cannot compose this; {told}: {' '.join(args)}", file=sys.stderr)
        return 2
    return 0


def in_composing(error: TypeError) -> bool:
    """Return whether Hydra itself tripped, over a choice such as `adapter=[1]`."""
    last = error.__traceback__
    while last and last.tb_next:
        last = last.tb_next
    return last is not None and last.tb_frame.f_globals["__name__"].startswith("hydra._internal.")


def _close_sweep(code: int) -> int:
    """Show how a sweep's jobs ended and close their parent run; returns the exit code."""
    from kinopoisk_ft.tracking.sweep import ParentRun

    sweep = ParentRun.opened
    if sweep is None:
        return code
    from kinopoisk_ft.jobs import outcomes, table

    found = outcomes(sweep.sweep_dir)
    print(table(found))
    code = code or int(any(job.status in ("failed", "unfinished") for job in found))
    sweep.close(STATUSES.get(code, "FAILED"))
    return code


def _flags_first(args: list[str]) -> list[str]:
    """Put flags before overrides: Hydra's parser refuses a flag between two of them."""
    flags: list[str] = []
    overrides: list[str] = []
    for previous, arg in zip(["", *args], args, strict=False):
        is_flag = arg.startswith("-") or previous in VALUED
        (flags if is_flag else overrides).append(arg)
    return flags + overrides


def _job(cfg: DictConfig) -> float | None:
    """Check the config, run it, and give a sweeper the validation score."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    from kinopoisk_ft.config import prepare

    out_dir = Path(HydraConfig.get().runtime.output_dir).absolute()
    sweeps = HydraConfig.get().mode == RunMode.MULTIRUN
    try:
        prepared = prepare(cfg, conf_dir())
        if sweeps:
            from kinopoisk_ft.jobs import run_job

            return run_job(prepared, out_dir)
        from kinopoisk_ft.run import run_together

        return run_together(prepared, out_dir)
    except Exception as raised:
        error = _cause(raised)
        told = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        if ranks.rank():
            print(f"rank {ranks.rank()}: error: {told}", file=sys.stderr)
            sys.exit(1)
        print(f"error: {told}\n  traceback: {_write_traceback(out_dir)}", file=sys.stderr)
        if sweeps:
            _note_failure(told)
            raise RunError from raised  # Hydra notes it and goes on with the next job
        sys.exit(1)


def _note_failure(told: str) -> None:
    from hydra.core.hydra_config import HydraConfig

    from kinopoisk_ft.jobs import Outcome, job_overrides

    hydra = HydraConfig.get()
    failed = Outcome(hydra.job.num, "failed", job_overrides(), told=told.splitlines()[0])
    failed.write(Path(hydra.sweep.dir))


def _cause(error: Exception) -> BaseException:
    """Return the UserError that Hydra wrapped while it built an object, else the error itself."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, UserError):
        cause = cause.__cause__
    return cause or error


def _write_traceback(out_dir: Path) -> Path:
    """Add the traceback to the log file alone: the screen has the message."""
    file = out_dir / "run.log"
    with suppress(OSError), file.open("a", encoding="utf-8") as stream:  # the disk may be full
        stream.write(traceback.format_exc())
    return file


def help_text(extra: list[Path]) -> str:
    """Return usage, then each group with its options and a line on each."""
    groups = group_options(conf_dir())
    for folder in extra:
        for group, options in group_options(folder).items():
            groups.setdefault(group, {}).update(options)
    order = ["model", "adapter", "data", "trainer", "tracking", "task", "experiment", "sweep"]
    lines = [USAGE]
    for group in sorted(groups, key=lambda g: (order.index(g) if g in order else 99, g)):
        lines.append(f"{group}")
        lines += [f"  {name:18} {text}" for name, text in groups[group].items()]
    return "\n".join(lines)


def _config_dirs(args: list[str]) -> list[Path]:
    """Return the folders of configs that arguments name; Hydra takes --config-path from here."""
    pairs = [*zip(args, [*args[1:], ""], strict=True)]
    pairs += [(flag, value) for flag, equals, value in (a.partition("=") for a in args) if equals]
    found = [Path(value) for flag, value in pairs if flag in ("--config-dir", "-cd")]
    here = Path(__file__).resolve().parent
    found += [here / value for flag, value in pairs if flag in ("--config-path", "-cp")]
    if searched := [arg for arg in args if "hydra.searchpath" in arg]:
        found += _searched(searched)
    return found


def _searched(overrides: list[str]) -> list[Path]:
    """Return the folders in values of hydra.searchpath, as Hydra reads them."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    found: list[str] = []
    for override in overrides:
        with suppress(HydraException):  # it is told when Hydra comes to it
            parsed = OverridesParser.create().parse_override(override)
            value = parsed.value() if parsed.get_key_element() == "hydra.searchpath" else None
            found += (
                (one for one in value if isinstance(one, str)) if isinstance(value, list) else ()
            )
    return [Path(one.removeprefix("file://")) for one in found if not one.startswith("pkg://")]


def _check_folders(args: list[str]) -> None:
    """Raise UserError for configs of the user's own folders that name what may not be run."""
    if folders := _config_dirs(args):
        from kinopoisk_ft.config_files import check_folders

        check_folders(folders)


def _explain(error: Exception, args: list[str]) -> str:
    """Turn Hydra's message on an override into one that names the nearest valid name."""
    from hydra.errors import MissingConfigException

    text = str(error)
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, option = error.missing_cfg_file.rpartition("/")
        if group == "hydra/launcher" and option in EXTRAS:
            return f"parallel jobs need an extra: pip install 'kinopoisk-ft[{EXTRAS[option]}]'"
        return f"there is no '{option}' in group '{group}': {nearest(option, error.options or [])}"
    missing = re.match(r"Could not override '([^']+)'", text)
    if missing:
        key = missing.group(1)
        return f"there is no option '{key}': {nearest(key, _known_keys(args, key))}"
    return text.strip()


def _known_keys(args: list[str], bad: str) -> list[str]:
    """Return every key and group of the config as composed without the overrides of `bad`."""
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    choices = [a for a in args if re.match(r"^[\w/]+=[\w/]+$", a) and not a.startswith(bad)]
    groups = group_options(conf_dir())
    chosen = [
        a
        for a in choices
        if a.split("=")[0] in groups and a.split("=")[1] in groups[a.split("=")[0]]
    ]
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        config = compose("train", overrides=chosen)
    return sorted(_leaves(OmegaConf.to_container(config))) + sorted(groups)


def _leaves(node: Any, prefix: str = "") -> list[str]:
    if not isinstance(node, dict):
        return [prefix]
    keys = [f"{prefix}.{k}" if prefix else str(k) for k in node if k != "_target_"]
    return keys + [
        leaf for k, v in node.items() for leaf in _leaves(v, f"{prefix}.{k}" if prefix else str(k))
    ]
