"""Run the command line with Hydra, and print errors as short messages.

Heavy packages are imported late, so that `--help` and error messages are fast.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from kinopoisk_ft.config.groups import get_conf_dir
from kinopoisk_ft.config.help import (
    build_help,
    build_overview,
    check_commas,
    explain_error,
    find_config_dirs,
)
from kinopoisk_ft.console import handle_errors, prepare_output
from kinopoisk_ft.errors import RunError, UserError, suggest_name
from kinopoisk_ft.files import prepare_caches
from kinopoisk_ft.training.distributed import torchrun

if TYPE_CHECKING:
    from omegaconf import DictConfig

log = logging.getLogger(__name__)

# Overrides for all torchrun processes except rank 0, so that only rank 0 writes files and logs.
NO_OUTPUT = [
    "hydra.run.dir=.",
    "hydra.output_subdir=null",
    "hydra/job_logging=none",
    "hydra/hydra_logging=none",
]
# Hydra's command-line flags that take a value.
FLAGS_WITH_VALUE = {
    *("--config-dir", "-cd", "--config-path", "-cp", "--config-name", "-cn"),
    *("--package", "-p", "--cfg", "-c"),
}
# Subcommands besides `train`; each one is a module of kinopoisk_ft.commands.
COMMANDS = {
    "report": "compare finished runs on one page",
    "compare": "decide from prediction files of any tool if an approach is as good as another",
    "predict": "classify reviews with a trained model",
    "explain": "show which words decided an answer",
    "export": "write a model that runs without PyTorch (ONNX)",
    "suspicious-labels": "find labels that are probably wrong",
    "publish": "upload a model to the Hugging Face hub",
    "sync": "send runs that were recorded offline to MLflow",
    "doctor": "check this machine",
    "ui": "open the MLflow UI",
}
# The packages whose versions `--version` prints.
VERSIONED = ("kinopoisk-ft", "torch", "transformers", "peft", "mlflow")
# MLflow status of a sweep's parent run for exit codes: 130 after SIGINT, 143 after SIGTERM.
STATUSES = {0: "FINISHED", 130: "KILLED", 143: "KILLED"}


@handle_errors
def main(argv: list[str] | None = None) -> int:
    """Run the command line.

    Returns:
        The exit code: 0 (success), 1 (failure), 2 (wrong usage), 130 (SIGINT) or 143 (SIGTERM).
    """
    args = sys.argv[1:] if argv is None else argv
    if not args:
        print(build_overview(COMMANDS))
        return 0
    if args == ["--version"]:
        print("\n".join(f"{name} {version(name)}" for name in VERSIONED))
        return 0
    if args[0] in COMMANDS:
        return int(
            import_module(f"kinopoisk_ft.commands.{args[0].replace('-', '_')}").main(args[1:])
        )
    if args[0] == "train":
        args = args[1:]
    elif re.fullmatch(r"\w[\w-]*", args[0]):
        fix = suggest_name(args[0], ["train", *COMMANDS])
        error = UserError(f"there is no command '{args[0]}'", fix=fix)
        print(f"error: {error}", file=sys.stderr)
        return 2
    if {"--help", "-h"} & set(args):
        print(build_help(find_config_dirs(args)))
        return 0
    prepare_caches()
    # With this variable, Hydra raises its errors instead of printing them, so we can explain them.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    # Without this variable, the tokenizers library warns each time the process is forked.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    # Hydra reads its arguments from `sys.argv`.
    sys.argv = [sys.argv[0], *_move_flags_first(args), *(NO_OUTPUT if torchrun.rank() else [])]
    import hydra

    from kinopoisk_ft.config.trust import freeze_trust

    launch = hydra.main(version_base="1.3", config_path=str(get_conf_dir()), config_name="train")(
        _job
    )
    # The exit code of the sweep if `_launch` raises an unexpected error, such as a killed worker.
    code = 1
    with freeze_trust():
        try:
            code = _launch(launch, args)
        finally:
            code = _close_sweep(code)
    return code


def _launch(launch: Callable[[], None], args: list[str]) -> int:
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
    except Exception as error:
        if message := explain_error(error, args):
            print(f"error: {message}", file=sys.stderr)
            return 2
        # The error has a file name if Hydra cannot create the output folder; others are unexpected.
        if not isinstance(error, OSError) or error.filename is None:
            raise
        from kinopoisk_ft.run_folder import explain_folder_error

        print(f"error: {explain_folder_error(error)}", file=sys.stderr)
        return 1
    return 0


def _close_sweep(code: int) -> int:
    from kinopoisk_ft.tracking.sweep import ParentRun

    # Hydra creates the callback object, so it can only be found through its class.
    sweep = ParentRun.opened
    if sweep is None:
        return code
    from kinopoisk_ft.sweeps.jobs import format_outcomes, read_outcomes

    jobs = read_outcomes(sweep.sweep_dir)
    print(format_outcomes(jobs))
    # A search raises no error for a failed job.
    code = code or int(any(job.status in ("failed", "unfinished") for job in jobs))
    store = sweep.find_store()
    sweep.close(STATUSES.get(code, "FAILED"))
    if store and sum(job.test_score is not None for job in jobs) > 1:
        from kinopoisk_ft.commands.report import summarize_sweep

        print(f"\n{summarize_sweep(*store)}")
    return code


def _move_flags_first(args: list[str]) -> list[str]:
    flags: list[str] = []
    overrides: list[str] = []
    for previous, arg in zip(["", *args], args, strict=False):
        # The value of a flag follows the flag to the front.
        is_flag = arg.startswith("-") or previous in FLAGS_WITH_VALUE
        (flags if is_flag else overrides).append(arg)
    # Hydra rejects a flag between two overrides.
    return flags + overrides


def _job(cfg: DictConfig) -> float | None:
    # A worker process of a sweep starts here and not in `main`.
    prepare_output()
    prepare_caches()
    from kinopoisk_ft.config.validate import get_job, get_output_dir, prepare
    from kinopoisk_ft.run_folder import read_seed

    out_dir, job = get_output_dir(), get_job()
    try:
        # If the config has no seed, a resumed run keeps the random seed that it drew at its start.
        prepared = prepare(cfg, read_seed(out_dir, cfg.get("resume", "auto")))
        if job:
            from kinopoisk_ft.sweeps.jobs import run_job

            return run_job(prepared, job, out_dir)
        from kinopoisk_ft.run import run_together

        return run_together(prepared, out_dir)
    except Exception as raised:
        error = _find_cause(raised)
        message = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        if torchrun.rank():
            print(f"rank {torchrun.rank()}: error: {message}", file=sys.stderr)
            sys.exit(1)
        print(f"error: {message}\n  traceback: {_write_traceback(out_dir)}", file=sys.stderr)
        if job:
            from kinopoisk_ft.sweeps.jobs import Outcome

            failed = Outcome(job.number, "failed", job.overrides, message=message.splitlines()[0])
            failed.write(job.sweep_dir)
            # Hydra marks the job as failed and continues with the next one.
            raise RunError from raised
        sys.exit(1)


def _find_cause(error: Exception) -> BaseException:
    # Hydra may wrap a UserError in another exception.
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, UserError):
        cause = cause.__cause__
    return cause or error


def _write_traceback(out_dir: Path) -> Path:
    file = out_dir / "run.log"
    # A full disk must not hide the original error.
    with suppress(OSError), file.open("a", encoding="utf-8") as stream:
        stream.write(traceback.format_exc())
    return file
