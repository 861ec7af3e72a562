"""The jobs of a sweep: what is finished is not trained again, and each leaves a note of its end."""

from __future__ import annotations

import json
import logging
import signal
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from hydra.utils import instantiate

from kinopoisk_ft.config.prepared import Job, Prepared
from kinopoisk_ft.files import write_atomically
from kinopoisk_ft.provenance import IDENTITY, RESULT
from kinopoisk_ft.run import run
from kinopoisk_ft.search.trial import Pruned, watch_trial
from kinopoisk_ft.statistics.metrics import HEADLINE
from kinopoisk_ft.sweeps.device_pool import own_device
from kinopoisk_ft.tasks.result import Result
from kinopoisk_ft.tracking.base import Tracker
from kinopoisk_ft.tracking.offline import find_unsent
from kinopoisk_ft.tracking.sweep import SAME_AS, notes_folder, read_parent
from kinopoisk_ft.training.signals import Stopped

log = logging.getLogger(__name__)


Status = Literal["done", "skipped", "failed", "pruned", "unfinished"]
ALWAYS_COUNTED = ("done", "skipped", "failed")


@dataclass(frozen=True)
class Outcome:
    """How a job ended; `told` is the cause if it failed or was pruned, or its result's warning.

    It is "unfinished" from its start on, and stays so if it is stopped or its process is killed.
    """

    job: int
    status: Status
    overrides: list[str]
    run_id: str = ""
    test_score: float | None = None  # the headline metric
    objective: float | None = None  # on validation
    told: str = ""

    def write(self, sweep_dir: Path) -> None:
        """Leave the note in the sweep's folder: jobs may be other processes."""
        file = notes_folder(sweep_dir) / f"{self.job}.json"
        write_atomically(file, json.dumps(asdict(self), ensure_ascii=False))


def outcomes(sweep_dir: Path) -> list[Outcome]:
    """Return the notes of a sweep's jobs in their order; a damaged one tells of no end."""
    found = [_read(file) for file in notes_folder(sweep_dir).glob("[0-9]*.json")]
    return sorted(found, key=lambda outcome: outcome.job)


def _read(file: Path) -> Outcome:
    try:
        note = json.loads(file.read_text(encoding="utf-8"))
        # Earlier versions wrote the score under the metric's own name.
        return Outcome(**{"test_score" if k == HEADLINE else k: v for k, v in note.items()})
    except (OSError, ValueError, TypeError) as error:
        told = f"its note {file} cannot be read: {error}"
        return Outcome(int(file.stem), "unfinished", [], told=told)


def table(found: list[Outcome]) -> str:
    """Return a line for each job, with the overrides that tell it from the others, and counts."""
    shared = set.intersection(*(set(one.overrides) for one in found)) if len(found) > 1 else set()
    lines = [f"  {'job':>3}  {'status':10}  {'val':7}  {'test F1':7}  {'run':32}  overrides"]
    for one in found:
        val, score = (
            "" if value is None else f"{value:.4f}" for value in (one.objective, one.test_score)
        )
        own = " ".join(override for override in one.overrides if override not in shared)
        scores = f"{val:7}  {score:7}"
        lines.append(f"  {one.job:>3}  {one.status:10}  {scores}  {one.run_id:32}  {own}".rstrip())
        lines += [f"       {one.told}"] if one.told else []
    counts = {s: sum(o.status == s for o in found) for s in get_args(Status)}
    unfinished = counts["unfinished"]
    counts = {s: count for s, count in counts.items() if count or s in ALWAYS_COUNTED}
    lines.append("jobs: " + ", ".join(f"{count} {status}" for status, count in counts.items()))
    if unfinished:
        lines.append("the same command, with its output_dir, goes on with what is unfinished")
    if found and counts["skipped"] == len(found):
        lines.append("nothing was left to do: rerun=true trains the jobs again")
    return "\n".join(lines)


def run_job(prepared: Prepared, out_dir: Path) -> float | None:
    """Run a job of a sweep, or point to the finished run that is identical.

    Returns the validation score, None of a trial that was pruned.
    """
    job = _job_of(prepared)
    note: dict[str, Any] = {"job": job.number, "overrides": job.overrides}
    Outcome(**note, status="unfinished").write(job.sweep_dir)
    result = None if prepared.cfg.rerun else _finished(prepared)
    if result is None:
        try:
            result = _train(prepared, out_dir)
        except Pruned as pruned:
            note |= {"status": "pruned", "told": str(pruned), "run_id": pruned.run_id}
            Outcome(**note).write(job.sweep_dir)
            return None
        note["status"] = "done"
    else:
        _point_to(result.run_id, prepared, out_dir)
        log.info("skipped: run %s is finished and identical", result.run_id)
        if prepared.result_file is not None:
            result.write(prepared.result_file)
        note["status"] = "skipped"
    note |= {"run_id": result.run_id, "objective": result.objective, "told": result.warning}
    Outcome(**note, test_score=result.scores.get(HEADLINE)).write(job.sweep_dir)
    return result.objective


def _job_of(prepared: Prepared) -> Job:
    if prepared.job is None:
        raise ValueError("this run is no job of a sweep")
    return prepared.job


def _train(prepared: Prepared, out_dir: Path) -> Result:
    """Run a job, on a GPU of its own where there are several that its launcher does not deal out.

    A signal that stops it is then given to the launcher, which may start the job again: submitit
    has Slurm requeue it.
    """
    job = _job_of(prepared)
    pool = own_device(notes_folder(job.sweep_dir)) if job.parallel else nullcontext()
    try:
        with pool:
            return run(prepared, out_dir)
    except Stopped as stop:
        if stop.number != signal.SIGINT and callable(signal.getsignal(stop.number)):
            signal.raise_signal(stop.number)
        raise


def _finished(prepared: Prepared) -> Result | None:
    """Return the result of an identical fine-tuning; pretraining always runs, for its folder."""
    if prepared.tags["kinopoisk_ft.kind"] != "train":
        return None
    tracker: Tracker = instantiate(prepared.cfg.tracking)
    wanted = {"kinopoisk_ft.kind": "train", IDENTITY: prepared.tags[IDENTITY]}
    found = tracker.find(wanted) or find_unsent(_job_of(prepared).sweep_dir, wanted)
    return Result.read(found[RESULT]) if found else None


def _point_to(run_id: str, prepared: Prepared, out_dir: Path) -> None:
    """Add a child to the new parent that names the finished run; reports follow it."""
    tracker = watch_trial(instantiate(prepared.cfg.tracking), prepared.job)
    pointer = {**prepared.tags, "kinopoisk_ft.kind": "skipped", SAME_AS: run_id}
    name, parent = f"skipped: {prepared.tags['approach']}", read_parent(_job_of(prepared).sweep_dir)
    tracker.start(name, {}, pointer, parent, folder=out_dir)
    tracker.finish("FINISHED")
