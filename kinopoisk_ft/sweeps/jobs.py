"""Run the jobs of a sweep, skip finished jobs, and print and record the outcomes."""

from __future__ import annotations

import itertools
import json
import logging
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from filelock import Timeout
from hydra.core.utils import JobReturn, JobStatus
from hydra.utils import instantiate

from kinopoisk_ft.config.prepared import Job, Prepared
from kinopoisk_ft.config.validate import OUTPUT_KEYS
from kinopoisk_ft.errors import LostJobError, UserError
from kinopoisk_ft.files import make_lock, write_atomically
from kinopoisk_ft.run import run
from kinopoisk_ft.search.trial import Pruned, watch_trial
from kinopoisk_ft.statistics.metrics import HEADLINE
from kinopoisk_ft.sweeps.forecast import (
    Expected,
    find_finished,
    format_time,
    read_forecast,
    sum_seconds,
)
from kinopoisk_ft.tasks.result import Result
from kinopoisk_ft.tracking.sweep import SAME_AS, notes_folder, read_parent
from kinopoisk_ft.training.progress import JOB
from kinopoisk_ft.training.signals import Stopped

log = logging.getLogger(__name__)

Status = Literal["done", "skipped", "failed", "pruned", "unfinished"]
# The summary shows the number of these jobs even if it is 0.
ALWAYS_COUNTED = ("done", "skipped", "failed")


@dataclass(frozen=True)
class Outcome:
    """The outcome of a job.

    A job that is running, stopped or killed has the status "unfinished".

    Args:
        objective: the validation score.
        seconds: how long the job took; None if it has not ended.
        message: why the job failed or was pruned, or a warning about the result.
    """

    job: int
    status: Status
    overrides: list[str]
    run_id: str = ""
    test_score: float | None = None
    objective: float | None = None
    message: str = ""
    seconds: float | None = None

    def write(self, sweep_dir: Path) -> None:
        """Write the outcome to a file in the folder of the sweep."""
        file = notes_folder(sweep_dir) / f"{self.job}.json"
        write_atomically(file, json.dumps(asdict(self), ensure_ascii=False))


def read_outcomes(sweep_dir: Path) -> list[Outcome]:
    """Read the outcomes of all jobs, sorted by job number."""
    found = [_read(file) for file in notes_folder(sweep_dir).glob("[0-9]*.json")]
    return sorted(found, key=lambda outcome: outcome.job)


def _read(file: Path) -> Outcome:
    try:
        note = json.loads(file.read_text(encoding="utf-8"))
        # Earlier versions wrote `test_score` and `message` under other names.
        names = {HEADLINE: "test_score", "told": "message"}
        return Outcome(**{names.get(key, key): value for key, value in note.items()})
    except (OSError, ValueError, TypeError) as error:
        message = f"the outcome file {file} cannot be read: {error}"
        return Outcome(int(file.stem), "unfinished", [], message=message)


def format_outcomes(found: list[Outcome]) -> str:
    """Format the jobs without a result as a table, followed by the number of jobs by status.

    Overrides that all jobs share are left out.
    """
    shared = set.intersection(*(set(one.overrides) for one in found)) if len(found) > 1 else set()
    missing = [one for one in found if one.status not in ("done", "skipped")]
    lines = [f"  {'job':>3}  {'status':10}  {'val':7}  overrides"] if missing else []
    for one in missing:
        val = "" if one.objective is None else f"{one.objective:.4f}"
        own = " ".join(override for override in one.overrides if override not in shared)
        lines.append(f"  {one.job:>3}  {one.status:10}  {val:7}  {own}".rstrip())
        lines += [f"       {one.message}"] if one.message else []
    counts = {s: sum(o.status == s for o in found) for s in get_args(Status)}
    unfinished = counts["unfinished"]
    counts = {s: count for s, count in counts.items() if count or s in ALWAYS_COUNTED}
    lines.append("jobs: " + ", ".join(f"{count} {status}" for status, count in counts.items()))
    if unfinished:
        lines.append("run the same command with the same output_dir to resume the unfinished jobs")
    if found and counts["skipped"] == len(found):
        lines.append("all jobs were finished already; use rerun=true to train them again")
    return "\n".join(lines)


def run_job(prepared: Prepared, job: Job, out_dir: Path) -> float | None:
    """Run a job, or use the result of an identical run that has finished.

    With `rerun`, the job always runs.

    Returns:
        The validation score; None if the job was pruned.
    """
    _quiet_console()
    expected = read_forecast(job.sweep_dir)
    JOB.set(number_job(job.number, expected))
    note: dict[str, Any] = {"job": job.number, "overrides": job.overrides}
    # If this process is killed, this outcome remains and shows the job as unfinished.
    Outcome(**note, status="unfinished").write(job.sweep_dir)
    started = time.monotonic()
    result = None if prepared.cfg.rerun else find_finished(prepared, job.sweep_dir)
    is_skipped = result is not None
    if result is None:
        try:
            result = _train(prepared, job, out_dir)
        except Pruned as pruned:
            note |= {"status": "pruned", "message": str(pruned), "run_id": pruned.run_id}
            Outcome(**note, seconds=time.monotonic() - started).write(job.sweep_dir)
            return None
    else:
        _record_skipped(result.run_id, prepared, job, out_dir)
        log.info("skipped, because the identical run %s is finished", result.run_id)
        if prepared.result_file is not None:
            result.write(prepared.result_file)
    seconds, score = time.monotonic() - started, result.scores.get(HEADLINE)
    Outcome(
        **note, status="skipped" if is_skipped else "done", run_id=result.run_id, test_score=score,
        objective=result.objective, message=result.warning, seconds=seconds,
    ).write(job.sweep_dir)  # fmt: skip
    name = f"{prepared.label}, seed {prepared.tags['seed']}"
    # The outcomes include jobs that other processes run at the same time.
    found, same_as = read_outcomes(job.sweep_dir), result.run_id if is_skipped else ""
    print(format_job(job.number, name, score, seconds, expected, found, same_as), flush=True)
    if result.warning:
        # The first sentence is enough here; run.log contains the whole message.
        log.info("%s", result.warning)
        print(f"  {result.warning.partition('. ')[0]}.", flush=True)
    return result.objective


def record_lost_jobs(
    sweep_dir: Path,
    found: Sequence[JobReturn | str],
    job_overrides: Sequence[Sequence[str]],
    first: int,
) -> list[JobReturn]:
    """Record each job whose process was lost, and return the results of all jobs.

    Args:
        found: the result of each job, or a message that says why there is none.
        first: the number of the first job.
    """
    return [
        _record_lost(sweep_dir, number, overrides, one) if isinstance(one, str) else one
        for number, (one, overrides) in enumerate(zip(found, job_overrides, strict=True), first)
    ]


def _record_lost(sweep_dir: Path, job: int, overrides: Sequence[str], message: str) -> JobReturn:
    print(f"error: job {job} was lost: {message}", file=sys.stderr)
    known = {outcome.job: outcome for outcome in read_outcomes(sweep_dir)}.get(job)
    if known is None or known.status == "unfinished":
        own = [o for o in overrides if not o.startswith(OUTPUT_KEYS)]
        Outcome(job, "unfinished", own, message=message).write(sweep_dir)
    lost = JobReturn(status=JobStatus.FAILED, overrides=overrides)
    # Hydra's own sweeper raises this error when it reads the results.
    lost.return_value = LostJobError()
    return lost


def _quiet_console() -> None:
    # Print only warnings from now on; run.log contains all messages.
    for handler in logging.root.handlers:
        # `isinstance` would also find the handler of run.log, because FileHandler is a subclass.
        if type(handler) is logging.StreamHandler:
            handler.setLevel(logging.WARNING)


def number_job(number: int, expected: Sequence[Expected]) -> str:
    """Return "3/5" for the job with index 2 of 5 jobs, or "3" if their number is unknown."""
    return f"{number + 1}/{len(expected)}" if expected else str(number + 1)


def format_job(
    number: int,
    name: str,
    score: float | None,
    seconds: float,
    expected: Sequence[Expected],
    outcomes: Sequence[Outcome],
    same_as: str = "",
) -> str:
    """Return a line such as "3/5 bert + lora, seed 0: F1 0.921 in 50 s, about 2 min left".

    Args:
        number: number of the job, from 0.
        seconds: how long this job took.
        outcomes: all outcomes so far. The times that jobs took correct the forecast.
        same_as: id of the earlier run whose result the job uses; "" if the job was not skipped.
    """
    text = f"{number_job(number, expected)} {name}: "
    text += "finished" if score is None else f"test {HEADLINE} {score:.3f}"
    text += f" (skipped: identical to run {same_as})" if same_as else f" in {format_time(seconds)}"
    running = {one.job for one in outcomes if one.status == "unfinished"}
    ended = {one.job for one in outcomes} - running
    left = [one for i, one in enumerate(expected) if i not in ended]
    guess = sum_seconds(left)
    took = {one.job: one.seconds for one in outcomes if one.seconds is not None}
    # Jobs whose results already existed say nothing about the speed.
    trained = {i: expected[i].seconds or 0.0 for i in took if i < len(expected)}
    trained = {i: value for i, value in trained.items() if value}
    if left and guess and trained:
        # Ratio of measured to expected time, which corrects the forecast for the other jobs.
        speed = sum(took[i] for i in trained) / sum(trained.values())
        # The next job takes the place of the job that has just ended.
        at_once = min(len(running) + 1, len(left))
        text += f", about {format_time(guess * speed / at_once)} left"
    return text


def _train(prepared: Prepared, job: Job, out_dir: Path) -> Result:
    device = reserve_device(notes_folder(job.sweep_dir)) if job.parallel else nullcontext()
    try:
        with device:
            return run(prepared, out_dir)
    except Stopped as stop:
        # Raise the signal again for the launcher. With submitit, for example, Slurm then requeues
        # the job.
        # Without a handler of the launcher, the signal would kill this process at once.
        if stop.number != signal.SIGINT and callable(signal.getsignal(stop.number)):
            signal.raise_signal(stop.number)
        raise


@contextmanager
def reserve_device(folder: Path) -> Iterator[int | None]:
    """Select the GPU with the fewest jobs as the CUDA device of a `with` block.

    Yield the index of the GPU; None if the machine has fewer than two GPUs. Jobs are counted by
    file locks in `folder`, because the operating system releases a lock even if its job is killed.

    Raises:
        UserError: files in the folder cannot be locked.
    """
    devices = torch.cuda.device_count()
    if devices < 2:
        yield None
        return
    folder.mkdir(parents=True, exist_ok=True)
    for number in itertools.count():
        # Place 0 of each GPU is tried before place 1 of any GPU, so the jobs are spread evenly.
        place, device = divmod(number, devices)
        lock = make_lock(folder / f"gpu-{device}.{place}.lock")
        try:
            held = lock.acquire(blocking=False)
        except Timeout:
            continue
        except OSError as error:
            raise UserError(
                f"jobs cannot share the GPUs, because their folder cannot be locked: {error}",
                where=str(folder),
                fix="choose an output_dir on a file system with locks, or run one job at a time",
            ) from error
        with held:
            torch.cuda.set_device(device)
            yield device
        return


def _record_skipped(run_id: str, prepared: Prepared, job: Job, out_dir: Path) -> None:
    tracker = watch_trial(instantiate(prepared.cfg.tracking), job)
    # Reports find the finished run through these tags.
    pointer = {**prepared.tags, "kinopoisk_ft.kind": "skipped", SAME_AS: run_id}
    name, parent = f"skipped: {prepared.tags['approach']}", read_parent(job.sweep_dir)
    tracker.start(name, {}, pointer, parent, folder=out_dir)
    tracker.finish("FINISHED")
