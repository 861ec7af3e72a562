"""The store's runs as plain rows: what finished, what failed and why."""

from __future__ import annotations

import itertools
import tempfile
import textwrap
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Experiment, LifecycleStage, Run
from mlflow.exceptions import MlflowException

from kinopoisk_ft.errors import UserError, nearest
from kinopoisk_ft.reporting import reading
from kinopoisk_ft.reporting.runs import Collected, TrainedRun
from kinopoisk_ft.text import one_line
from kinopoisk_ft.tracking.store import restore_command
from kinopoisk_ft.tracking.sweep import SAME_AS

# What is read of the same test rows: a run that reads otherwise does not replace an older one.
READ = ("data.max_length", "data.truncation", "data.max_characters", "data.strip_scores")
CAUSE_CHARACTERS = 160


def collect(client: MlflowClient, experiment: str, parent: str | None = None) -> Collected:
    """Read the training runs of an experiment, or of the sweep `parent` wherever it is.

    Of runs with the same approach, seed and test rows that read the same of each (`READ`) the
    newest counts; within a sweep, runs with different settings all count. Raises UserError where
    there is no such experiment or sweep, or nothing has finished.
    """
    found = _experiment(client, experiment) if parent is None else _sweep_home(client, parent)
    raw = _runs(client, found.experiment_id, parent)
    trained, failed = [], []
    for run in raw:
        if run.info.status in ("FAILED", "KILLED"):
            failed.append(reading.failed(run, *_cause(client, run)))
        elif run.info.status == "FINISHED":
            missing = reading.missing(run)
            if missing:
                failed.append(reading.failed(run, "incomplete", missing))
            else:
                trained.append(reading.trained(run))
    unfinished = sum(run.info.status in ("RUNNING", "SCHEDULED") for run in raw)
    if not trained:
        raise UserError(
            "no training run has finished",
            where=f"experiment '{found.name}'" + (f", sweep {parent}" if parent else ""),
            fix=f"failed: {len(failed)}, not finished: {unfinished}; "
            "train first, for example: python -m kinopoisk_ft sweep=study",
        )
    kept = _newest(trained, by_settings=parent is not None)
    return Collected(
        experiment=one_line(found.name),
        runs=kept,
        failed=failed,
        superseded=len(trained) - len(kept),
        unfinished=unfinished,
    )


def _experiment(client: MlflowClient, name: str) -> Experiment:
    found = client.get_experiment_by_name(name)
    if found is None:
        raise UserError(
            f"there is no experiment '{name}' in the store",
            where="--experiment",
            fix=nearest(name, [e.name for e in client.search_experiments()]),
        )
    return _active(client, found)


def _active(client: MlflowClient, experiment: Experiment) -> Experiment:
    """Return the experiment; UserError where it is deleted, and its runs with it."""
    if experiment.lifecycle_stage != LifecycleStage.ACTIVE:
        uri, name = client.tracking_uri, experiment.name
        raise UserError(
            f"the experiment '{name}' is deleted, and its runs with it",
            where="--experiment",
            fix=f"restore it: {restore_command(uri, 'experiments', experiment.experiment_id)}",
        )
    return experiment


def _sweep_home(client: MlflowClient, parent: str) -> Experiment:
    """Return the experiment that a sweep belongs to."""
    try:
        run = client.get_run(parent)
    except MlflowException as error:
        experiments = [e.experiment_id for e in client.search_experiments()]
        sweeps = client.search_runs(experiments, "tags.`kinopoisk_ft.kind` = 'sweep'")
        ids = [sweep.info.run_id for sweep in sweeps]
        raise UserError(
            f"there is no run '{parent}' in the store",
            where="--parent",
            fix=nearest(parent, ids) if ids else "the store has no sweeps: leave it out",
        ) from error
    if run.data.tags.get("kinopoisk_ft.kind") in ("train", "skipped"):
        sweep = run.data.tags.get("mlflow.parentRunId")
        raise UserError(
            f"run '{parent}' is no sweep but one training run",
            where="--parent",
            fix=f"give its sweep: {sweep}" if sweep else "leave it out: it was of no sweep",
        )
    return _active(client, client.get_experiment(run.info.experiment_id))


def _runs(client: MlflowClient, experiment_id: str, parent: str | None) -> list[Run]:
    """Return the training runs, of a sweep also those that its skipped jobs point to."""
    if parent is None:
        return _search(client, experiment_id, ["tags.`kinopoisk_ft.kind` = 'train'"])
    of_sweep = f"tags.`mlflow.parentRunId` = '{parent}'"
    runs, skipped = (
        _search(client, experiment_id, [f"tags.`kinopoisk_ft.kind` = '{kind}'", of_sweep])
        for kind in ("train", "skipped")
    )
    try:
        runs += [client.get_run(run) for run in {job.data.tags[SAME_AS] for job in skipped}]
    except MlflowException as error:
        raise UserError(
            f"a run that a skipped job points to is gone: {error.message}",
            where=f"sweep {parent}",
            fix="run the sweep again: it trains what is missing",
        ) from error
    return sorted(runs, key=lambda r: (r.info.start_time, r.info.run_id))


def _search(client: MlflowClient, experiment_id: str, terms: list[str]) -> list[Run]:
    runs: list[Run] = []
    token = None
    while True:
        page = client.search_runs([experiment_id], " and ".join(terms), page_token=token)
        runs += page
        token = page.token
        if not token:
            return sorted(runs, key=lambda r: (r.info.start_time, r.info.run_id))


def _cause(client: MlflowClient, run: Run) -> tuple[str, str]:
    """Return kind and detail: the first line at the margin after the last traceback's head."""
    if run.info.status == "KILLED":
        return "killed", ""
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = client.download_artifacts(run.info.run_id, "traceback.txt", folder)
            text = Path(path).read_text(encoding="utf-8", errors="replace")
    except (MlflowException, OSError):
        return "no_traceback", ""
    lines = text.rpartition("Traceback (most recent call last):")[2].splitlines()
    rest = list(itertools.dropwhile(lambda line: not line[:1].strip(), lines))
    # A message that ends in a colon says the cause on the next line.
    line = " ".join(itertools.islice(rest, 2 if rest and rest[0].endswith(":") else 1))
    if not line:
        return "no_traceback", ""
    return "raised", textwrap.shorten(one_line(line), CAUSE_CHARACTERS, placeholder=" …")


def _newest(runs: list[TrainedRun], *, by_settings: bool) -> list[TrainedRun]:
    kept: dict[tuple[str, ...], TrainedRun] = {}
    for run in sorted(runs, key=lambda r: (r.start_time, r.run_id)):
        key = (run.approach, run.seed, run.data, run.source_digest, run.split_digest)
        read = {name: run.settings.get(name) for name in READ}
        kept[(*key, str(run.settings if by_settings else read))] = run
    return list(kept.values())
