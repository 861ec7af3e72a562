"""The command line: help at once, one clear message for a mistake, Hydra for the rest.

Heavy packages are imported only when a run starts, so that `--help` and typos answer at once.
"""

from __future__ import annotations

import logging
import os
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from kinopoisk_ft.caches import prepare_caches
from kinopoisk_ft.config.groups import conf_dir
from kinopoisk_ft.config.help import check_commas, explain, help_text, in_composing
from kinopoisk_ft.console import guard_output, prepare_output
from kinopoisk_ft.errors import RunError, UserError
from kinopoisk_ft.training.distributed import torchrun

if TYPE_CHECKING:
    from omegaconf import DictConfig

log = logging.getLogger(__name__)

# Of torchrun's processes the first alone has a folder and a log.
NO_FOLDER = ["hydra.run.dir=.", "hydra.output_subdir=null", "hydra/job_logging=none",
             "hydra/hydra_logging=none"]  # fmt: skip

# Hydra's flags that are followed by a value.
VALUED = {"--config-dir", "-cd", "--config-path", "-cp", "--config-name", "-cn",
          "--package", "-p", "--cfg", "-c"}  # fmt: skip
# Of a sweep's parent, by exit code: signals that stop a run give the last two.
STATUSES = {0: "FINISHED", 130: "KILLED", 143: "KILLED"}


@guard_output
def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0, 1 for a failure, 2 for bad usage."""
    args = sys.argv[1:] if argv is None else argv
    if {"--help", "-h"} & set(args):
        print(help_text(_config_dirs(args)))
        return 0
    prepare_caches()
    # Hydra then raises instead of printing its own report, and the message is ours to write.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    sys.argv = [sys.argv[0], *_flags_first(args), *(NO_FOLDER if torchrun.rank() else [])]
    import hydra

    from kinopoisk_ft.config.trust import trust_held

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
        check_commas(args)
        launch()
    except RunError:
        return 1
    except KeyboardInterrupt as stop:
        if torchrun.rank() == 0:
            print(str(stop) or "interrupted", file=sys.stderr)
        return getattr(stop, "exit_code", 130)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except (HydraException, ValueError) as error:
        print(f"error: {explain(error, args)}", file=sys.stderr)
        return 2
    except OSError as error:
        if error.filename is None:
            raise
        from kinopoisk_ft.run_folder import folder_refused

        print(f"error: {folder_refused(error)}", file=sys.stderr)
        return 1
    except TypeError as error:
        if not in_composing(error):
            raise
        told = "a group's choice is a name, or a list of names"
        print(f"error: Hydra cannot compose this; {told}: {' '.join(args)}", file=sys.stderr)
        return 2
    return 0


def _close_sweep(code: int) -> int:
    """Show how a sweep's jobs ended and close their parent run; returns the exit code."""
    from kinopoisk_ft.tracking.sweep import ParentRun

    sweep = ParentRun.opened
    if sweep is None:
        return code
    from kinopoisk_ft.sweeps.jobs import outcomes, table

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
    # A worker process of a sweep begins here.
    prepare_output()
    prepare_caches()
    from kinopoisk_ft.config.validate import current_job, output_dir, prepare
    from kinopoisk_ft.run_folder import kept_seed

    out_dir, job = output_dir(), current_job()
    try:
        prepared = prepare(cfg, conf_dir(), kept_seed(out_dir, cfg.get("resume", "auto")))
        if job:
            from kinopoisk_ft.sweeps.jobs import run_job

            return run_job(prepared, out_dir)
        from kinopoisk_ft.run import run_together

        return run_together(prepared, out_dir)
    except Exception as raised:
        error = _cause(raised)
        told = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        if torchrun.rank():
            print(f"rank {torchrun.rank()}: error: {told}", file=sys.stderr)
            sys.exit(1)
        print(f"error: {told}\n  traceback: {_write_traceback(out_dir)}", file=sys.stderr)
        if job:
            from kinopoisk_ft.sweeps.jobs import Outcome

            failed = Outcome(job.number, "failed", job.overrides, told=told.splitlines()[0])
            failed.write(job.sweep_dir)
            raise RunError from raised  # Hydra notes it and goes on with the next job
        sys.exit(1)


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


def _config_dirs(args: list[str]) -> list[Path]:
    """Return the folders of the user's own config groups, for `--help`."""
    pairs = [*pairwise([*args, ""]), *(arg.split("=", 1) for arg in args if "=" in arg)]
    return [Path(value) for flag, value in pairs if flag in ("--config-dir", "-cd")]
