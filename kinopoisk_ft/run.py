"""Run one experiment, and record its result."""

from __future__ import annotations

import logging
import signal
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from omegaconf import OmegaConf

from kinopoisk_ft.config.prepared import TAGS, Prepared
from kinopoisk_ft.console import freeze_imported_objects, silence_libraries
from kinopoisk_ft.files import check_writable, wrap_disk_full
from kinopoisk_ft.provenance import RESULT
from kinopoisk_ft.run_folder import RunFolder
from kinopoisk_ft.search.trial import Pruned, watch_trial
from kinopoisk_ft.tasks.record import write_json
from kinopoisk_ft.tasks.result import Result
from kinopoisk_ft.text import hide_password
from kinopoisk_ft.tracking.base import Tracker
from kinopoisk_ft.tracking.event_log import EventLog
from kinopoisk_ft.tracking.offline import close_killed
from kinopoisk_ft.tracking.sweep import read_parent
from kinopoisk_ft.training.device import limit_threads
from kinopoisk_ft.training.distributed.processes import (
    TIMEOUT,
    broadcast_from_main,
    explain_lost_connection,
    is_main,
    join_processes,
    world_size,
)
from kinopoisk_ft.training.signals import StopSignals

log = logging.getLogger(__name__)


def run(prepared: Prepared, out_dir: Path) -> Result:
    """Run the task of a validated config, and return its result.

    If the task fails, the error is recorded and then raised.
    """
    silence_libraries()
    limit_threads()
    freeze_imported_objects()
    cfg = prepared.cfg
    tracker = watch_trial(instantiate(cfg.tracking), prepared.job)
    plain: Any = OmegaConf.to_container(cfg)
    folder = RunFolder(out_dir, plain)
    # Fail now, and not after hours of training.
    if prepared.result_file is not None:
        check_writable(prepared.result_file, "result_json")
    with StopSignals(), folder.lock():
        tags = prepared.tags
        # A new run deletes the checkpoints in the folder, so this requires the lock.
        name, resumed_id = f"{tags['approach']}, seed {tags['seed']}", folder.find_run()
        # An earlier process that was killed in this folder could not end its run in the store.
        close_killed(instantiate(cfg.tracking), out_dir, resumed_id)
        parent_id = read_parent(prepared.job.sweep_dir) if prepared.job else None
        # The local id is saved before the run exists, and never replaced by the id in the store.
        # Otherwise, a full disk or a damaged event log could leave a run in the store that the
        # repeated command does not find.
        local_id = resumed_id or EventLog.new(out_dir).local_id
        folder.mark_started(local_id)
        run_id = tracker.start(name, plain, tags, parent_id, local_id, folder=out_dir)
        try:
            # Other people may read this file in the store.
            text = hide_password(OmegaConf.to_yaml(cfg))
            (out_dir / "config.yaml").write_text(text, encoding="utf-8")
            write_json(out_dir / TAGS, tags)
            tracker.artifact(out_dir / "config.yaml")
            with wrap_disk_full(out_dir), explain_lost_connection():
                result: Result = instantiate(cfg.task)(cfg, tracker, run_id, out_dir)
                if prepared.result_file is not None:
                    result.write(prepared.result_file)
        # A pruned trial is not a failure: the search stopped it on purpose.
        except Pruned:
            tracker.finish("FINISHED")
            folder.mark_finished()
            raise
        except BaseException as error:
            _record_failure(tracker, error, out_dir)
            raise
        # Sweeps skip jobs whose run has this tag, so it is set only after everything is written.
        tracker.tags({RESULT: result.as_json()})
        # If the process dies before `mark_finished`, the same command resumes and ends the run.
        tracker.finish("FINISHED")
        folder.mark_finished()
    # A job of a sweep prints its own line (`run_job`).
    if prepared.job is None:
        print(f"{prepared.label}\n{result.table(cfg.tracking.experiment, cfg.tracking.uri)}")
    return result


def run_together(prepared: Prepared, out_dir: Path) -> float | None:
    """Run an experiment together with the other processes that torchrun started.

    All processes use the config of rank 0. Otherwise, a random seed or a folder name with the
    current time would differ between processes.

    Returns:
        On rank 0, `Result.objective`, which a sweeper may optimize; None on other ranks.
    """
    trainer = prepared.cfg.trainer
    seconds = trainer.get("process_timeout", TIMEOUT)
    with StopSignals(), join_processes(trainer.strategy, trainer.device, seconds):
        prepared = broadcast_from_main(lambda: prepared)
        if is_main():
            return run(prepared, out_dir).objective
        _run_worker(prepared)
        return None


def _run_worker(prepared: Prepared) -> None:
    silence_libraries()
    limit_threads()
    freeze_imported_objects()
    # Rank 0 logs the same messages.
    logging.disable(logging.WARNING)
    tracker = Tracker(uri=None, experiment="")
    # Rank 0 writes the same files to the output folder.
    with StopSignals(), tempfile.TemporaryDirectory(prefix="kinopoisk_ft_") as folder:
        instantiate(prepared.cfg.task)(prepared.cfg, tracker, "", Path(folder))


def _record_failure(tracker: Tracker, error: BaseException, out_dir: Path) -> None:
    if world_size() > 1 and not isinstance(error, KeyboardInterrupt):
        # After a failure, torchrun sends SIGTERM to all processes, but this one is already ending.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    stopped = isinstance(error, KeyboardInterrupt)
    steps: list[Callable[[], None]] = [
        # After a signal, a traceback would show no fault.
        lambda: None if stopped else _log_traceback(tracker, out_dir / "traceback.txt"),
        lambda: tracker.tags({"error": str(error)[:500]}),
        lambda: tracker.finish("KILLED" if stopped else "FAILED"),
    ]
    # If one step fails, the other steps still run, and the caller raises the original error.
    for step in steps:
        try:
            step()
        except Exception as second:
            log.warning("the failure could not be recorded completely: %s", second)


def _log_traceback(tracker: Tracker, file: Path) -> None:
    file.write_text(traceback.format_exc(), encoding="utf-8")
    tracker.artifact(file)
