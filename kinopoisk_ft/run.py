"""The table of contents of a run: data, model, adapter, trainer, result."""

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

from kinopoisk_ft.config.prepared import Prepared
from kinopoisk_ft.console import freeze_imported_objects, silence_libraries
from kinopoisk_ft.files import check_writable, wrap_disk_full
from kinopoisk_ft.provenance import RESULT
from kinopoisk_ft.run_folder import Unfinished
from kinopoisk_ft.search.trial import Pruned, watch_trial
from kinopoisk_ft.tasks.result import Result
from kinopoisk_ft.tracking.base import NoTracker, Tracker
from kinopoisk_ft.tracking.offline import close_killed
from kinopoisk_ft.tracking.sweep import read_parent
from kinopoisk_ft.training.distributed.processes import (
    broadcast_from_main,
    is_main,
    processes,
    world_size,
)
from kinopoisk_ft.training.signals import StopSignals

log = logging.getLogger(__name__)


def run(prepared: Prepared, out_dir: Path) -> Result:
    """Run the task of a checked config; a failure is recorded as such and raised again."""
    silence_libraries()
    freeze_imported_objects()
    cfg = prepared.cfg
    tracker = watch_trial(instantiate(cfg.tracking), prepared.job)
    plain: Any = OmegaConf.to_container(cfg)
    unfinished = Unfinished(out_dir, plain)
    wanted = prepared.result_file
    if wanted is not None:
        check_writable(wanted, "result_json")
    with StopSignals(), unfinished.held():
        tags = prepared.tags
        name, kept = f"{tags['approach']}, seed {tags['seed']}", unfinished.reopen()
        close_killed(instantiate(cfg.tracking), out_dir, kept)
        run_id = tracker.start(name, plain, tags, _parent(prepared), kept, folder=out_dir)
        try:
            unfinished.begin(run_id)
            OmegaConf.save(cfg, out_dir / "config.yaml")
            tracker.artifact(out_dir / "config.yaml")
            with wrap_disk_full(out_dir):
                result: Result = instantiate(cfg.task)(cfg, tracker, run_id, out_dir)
                if wanted is not None:
                    result.write(wanted)
        except Pruned:
            tracker.finish("FINISHED")
            unfinished.end()
            raise
        except BaseException as error:
            _fail(tracker, error, out_dir)
            raise
        tracker.tags({RESULT: result.as_json()})
        tracker.finish("FINISHED")
        unfinished.end()
    print(f"{prepared.tags['approach']}\n{result.table()}")
    return result


def run_together(prepared: Prepared, out_dir: Path) -> float | None:
    """Run the task in all processes that torchrun started, or in this one; returns the objective.

    What rank 0 was given counts for all: a drawn seed, and a folder named by the time.
    """
    with StopSignals(), processes(prepared.cfg.trainer.strategy, prepared.cfg.trainer.device):
        prepared = broadcast_from_main(lambda: prepared)
        if is_main():
            return run(prepared, out_dir).objective
        _take_part(prepared)
        return None


def _take_part(prepared: Prepared) -> None:
    """Train with rank 0, which alone records and keeps what comes of it."""
    silence_libraries()
    freeze_imported_objects()
    logging.disable(logging.WARNING)  # rank 0 says the same
    tracker = NoTracker(uri=None, experiment="")
    with StopSignals(), tempfile.TemporaryDirectory(prefix="kinopoisk_ft_") as folder:
        instantiate(prepared.cfg.task)(prepared.cfg, tracker, "", Path(folder))


def _fail(tracker: Tracker, error: BaseException, out_dir: Path) -> None:
    """Record a failure as well as the disk and the store let us: the error itself is to be told.

    What cannot be recorded keeps nothing else from being: the run is always closed.
    """
    if world_size() > 1 and not isinstance(error, KeyboardInterrupt):
        # torchrun ends the other processes when one has failed: this one is ending by itself.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    status = "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED"
    steps: list[Callable[[], None]] = [
        lambda: _keep_traceback(tracker, out_dir / "traceback.txt"),
        lambda: tracker.tags({"error": str(error)[:500]}),
        lambda: tracker.finish(status),
    ]
    for step in steps:
        try:
            step()
        except Exception as second:
            log.warning("the failure could not be recorded in full: %s", second)


def _keep_traceback(tracker: Tracker, file: Path) -> None:
    file.write_text(traceback.format_exc(), encoding="utf-8")
    tracker.artifact(file)


def _parent(prepared: Prepared) -> str | None:
    """Return the id of the sweep's parent run, None for a run outside a sweep."""
    return read_parent(prepared.job.sweep_dir) if prepared.job else None
