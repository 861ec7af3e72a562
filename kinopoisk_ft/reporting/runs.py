"""Read the finished and failed training runs from an MLflow store."""

from __future__ import annotations

import itertools
import math
import tempfile
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Experiment, LifecycleStage, Run
from mlflow.exceptions import MlflowException

from kinopoisk_ft.config.command import TRAINER_KEYS_WITHOUT_EFFECT
from kinopoisk_ft.config.prepared import ADDED, name_checkpoint
from kinopoisk_ft.errors import UserError, suggest_name
from kinopoisk_ft.search.best_trial import BEST
from kinopoisk_ft.statistics.metrics import MARKED
from kinopoisk_ft.text import replace_controls, to_one_line
from kinopoisk_ft.tracking.mlflow_names import flat_metrics, readable_params
from kinopoisk_ft.tracking.store import restore_command
from kinopoisk_ft.tracking.sweep import SAME_AS

# The only model that is not a neural network.
BASELINE = "tfidf"
# MLflow tags with the same names as fields of `TrainedRun`.
TAGS = (
    "model", "data", "split_digest", "source_digest", "device", "commit", "experiment",
    "overrides", "precision",
)  # fmt: skip
GROUPS = ("model", "adapter", "data", "trainer")
# Keys that do not change what is learned. All other keys of the groups distinguish rows.
# By default, data.text_prefix repeats model.text_prefix.
NOT_SETTINGS = (
    *TRAINER_KEYS_WITHOUT_EFFECT, "trainer.seed", "trainer.device", "trainer.log_every",
    "trainer.eval_batch_size", "data.train_seed", "model.text_prefix",
)  # fmt: skip
# Settings that have an effect only with data.truncation=windows.
OF_WINDOWS = ("data.window_stride", "data.max_windows", "model.window_pooling")
# Prefixes of keys that TF-IDF does not use, because it is fitted on words in one pass.
NOT_ITS_SETTINGS = (
    *NOT_SETTINGS, *OF_WINDOWS, "trainer", "adapter", "data.max_length", "data.text_prefix",
)  # fmt: skip
# Settings that runs of earlier versions lack, with the values that mean the same. Runs with windows
# have all settings of windows, and there data.max_windows=8 differs from null.
SAME_AS_MISSING = readable_params(
    {key: str(value) for key, value in ADDED.items() if key not in OF_WINDOWS}
)
NEEDED_METRICS = tuple(f"test_{name}" for name in MARKED)
# Settings that change how reviews are read. Runs that differ in one of them do not repeat each
# other.
READ = (
    "data.max_length", "data.truncation", "data.max_characters", "data.strip_scores",
    "data.train_limit", "data.window_stride", "data.max_windows", "data.text_prefix",
)  # fmt: skip
# Maximum length of an error message in the table of failed runs.
CAUSE_CHARACTERS = 160


@dataclass(frozen=True, kw_only=True)
class TrainedRun:
    """One finished training run.

    Args:
        start_time: milliseconds since the Unix epoch.
        train_seed: seed that drew the reviews of data.train_limit; empty without this limit.
        settings: config values that distinguish rows of the report.
        experiment: chosen option of conf/experiment.
        overrides: overrides of the config from the command line.
        command: command that repeats the run.
        parent: run id of the sweep.
        not_learned: the failed checks of `tasks.learned`, joined by commas; empty if none failed.
        searched: "trial" for a trial of a hyperparameter search, "experiment=best" for a run with
            the best settings of a search, otherwise empty.
    """

    run_id: str
    approach: str
    model: str
    adapter: str
    seed: str
    data: str
    split_digest: str
    source_digest: str
    device: str
    commit: str
    start_time: int
    settings: dict[str, str]
    metrics: dict[str, float]
    train_seed: str = ""
    experiment: str = ""
    overrides: str = ""
    command: str = ""
    precision: str = ""
    parent: str = ""
    not_learned: str = ""
    searched: str = ""

    @property
    def repetition(self) -> str:
        """Return the seed, followed by the seed that drew the reviews if it is another one."""
        is_same = self.train_seed in ("", self.seed)
        return self.seed if is_same else f"{self.seed}/{self.train_seed}"

    @property
    def max_length(self) -> str:
        """Return the maximum number of tokens per review, or "" for TF-IDF."""
        return self.settings.get("data.max_length", "") if self.model != BASELINE else ""


@dataclass(frozen=True, kw_only=True)
class FailedRun:
    """A run without a result.

    Args:
        kind: "raised" if the run recorded an error, "killed" if it was killed, "no_traceback" if it
            failed without a recorded error, or "incomplete" if metrics or tags are missing.
        detail: the error message for "raised", the names of the missing metrics and tags for
            "incomplete", otherwise empty.
    """

    run_id: str
    approach: str
    seed: str
    kind: str
    detail: str = ""


@dataclass(frozen=True, kw_only=True)
class Collected:
    """The runs of a report.

    Args:
        superseded: number of finished runs left out because a newer run repeats them.
        unfinished: number of runs that have not ended.
    """

    experiment: str
    runs: list[TrainedRun]
    failed: list[FailedRun] = field(default_factory=list)
    superseded: int = 0
    unfinished: int = 0


def _list_missing(run: Run) -> str:
    metrics = flat_metrics(run.data.metrics)
    found = [n for n in NEEDED_METRICS if not math.isfinite(metrics.get(n, math.nan))]
    # Without the digest, it is unknown which test reviews the scores describe.
    if not run.data.tags.get("split_digest"):
        found.append("split_digest")
    return ", ".join(found)


def _approach(tags: dict[str, str], params: dict[str, str]) -> str:
    parts = [tags.get("model", "unknown"), tags.get("adapter", "none")]
    name = tags.get("approach") or " + ".join(p for p in parts if p != "none")
    return name_checkpoint(name, parts[0], params.get("model.name", ""))


def _plain(values: Mapping[str, str]) -> dict[str, str]:
    # Anyone with write access to the store can set these values.
    return {key: to_one_line(value) for key, value in values.items()}


def read_trained(run: Run) -> TrainedRun:
    """Convert a finished MLflow run with all needed metrics and tags to a `TrainedRun`."""
    tags, params = _plain(run.data.tags), _plain(readable_params(run.data.params))
    ignored = NOT_ITS_SETTINGS if tags.get("model") == BASELINE else NOT_SETTINGS
    if params.get("data.truncation") != "windows":
        ignored = (*ignored, *OF_WINDOWS)
    has_all_reviews = params.get("data.train_limit", "None") == "None"
    best = f"experiment={BEST.stem}" if tags.get("experiment") == BEST.stem else ""
    # If the digest of the data is known, their path does not matter.
    if tags.get("source_digest"):
        ignored = (*ignored, "data.path")
    return TrainedRun(
        run_id=run.info.run_id,
        approach=_approach(tags, params),
        adapter=tags.get("adapter", "none"),
        seed=tags.get("seed") or params.get("seed", ""),
        train_seed="" if has_all_reviews else params.get("data.train_seed", ""),
        # The command is not reduced to single spaces, because spaces in quotes matter.
        command=replace_controls(run.data.tags.get("command", "")),
        parent=tags.get("mlflow.parentRunId", ""),
        searched="trial" if "trial" in tags else best,
        # Earlier versions used another tag.
        not_learned=tags.get("not_learned") or tags.get("not_above_majority", ""),
        start_time=run.info.start_time,
        # Sorted, because runs are grouped by the string of this dict.
        settings={
            k: params[k]
            for k in sorted(params)
            if k.partition(".")[0] in GROUPS
            and not k.startswith(ignored)
            and SAME_AS_MISSING.get(k) != params[k]
        },
        metrics={k: v for k, v in flat_metrics(run.data.metrics).items() if math.isfinite(v)},
        **{name: tags.get(name, "") for name in TAGS},
    )


def _read_failed(run: Run, kind: str, detail: str) -> FailedRun:
    tags, params = _plain(run.data.tags), _plain(run.data.params)
    seed, name = tags.get("seed") or params.get("seed", ""), _approach(tags, params)
    return FailedRun(run_id=run.info.run_id, approach=name, seed=seed, kind=kind, detail=detail)


def collect(client: MlflowClient, experiment: str, parent: str | None = None) -> Collected:
    """Read the training runs of an experiment or of a sweep.

    If several runs repeat each other, only the newest is kept. Such runs have the same approach,
    seed, data and split. In a sweep, all their settings must be the same, because a sweep may
    compare settings of one approach. In an experiment, only the settings in `READ`, which change
    how reviews are read, must be the same.

    Args:
        parent: run id of the sweep. If given, `experiment` is ignored.

    Raises:
        UserError: the experiment or sweep does not exist, or no run has finished.
    """
    found = _experiment(client, experiment) if parent is None else _sweep_home(client, parent)
    raw = _runs(client, found.experiment_id, parent)
    # Oldest first, as `_newest` expects. Run ids make the order of equal times reproducible.
    raw.sort(key=lambda run: (run.info.start_time, run.info.run_id))
    trained, failed = [], []
    for run in raw:
        if run.info.status in ("FAILED", "KILLED"):
            failed.append(_read_failed(run, *_cause(client, run)))
        elif run.info.status == "FINISHED":
            if missing := _list_missing(run):
                failed.append(_read_failed(run, "incomplete", missing))
            else:
                trained.append(read_trained(run))
    unfinished = sum(run.info.status in ("RUNNING", "SCHEDULED") for run in raw)
    if not trained:
        raise UserError(
            f"no training run has finished (failed: {len(failed)}, not finished: {unfinished})",
            where=f"experiment '{found.name}'" + (f", sweep {parent}" if parent else ""),
            fix="train first, for example with: kinopoisk-ft train sweep=study",
        )
    kept = _newest(trained, by_settings=parent is not None)
    return Collected(
        experiment=to_one_line(found.name), runs=kept, failed=failed,
        superseded=len(trained) - len(kept), unfinished=unfinished,
    )  # fmt: skip


def _experiment(client: MlflowClient, name: str) -> Experiment:
    found = client.get_experiment_by_name(name)
    if found is None:
        raise UserError(
            f"there is no experiment '{name}' in the store",
            where="--experiment",
            fix=suggest_name(name, [e.name for e in client.search_experiments()]),
        )
    return _active(client, found)


def _active(client: MlflowClient, experiment: Experiment) -> Experiment:
    if experiment.lifecycle_stage != LifecycleStage.ACTIVE:
        uri, name = client.tracking_uri, experiment.name
        raise UserError(
            f"the experiment '{name}' and its runs have been deleted",
            where="--experiment",
            fix=f"restore it with: {restore_command(uri, 'experiments', experiment.experiment_id)}",
        )
    return experiment


def _sweep_home(client: MlflowClient, parent: str) -> Experiment:
    try:
        run = client.get_run(parent)
    except MlflowException as error:
        experiments = [e.experiment_id for e in client.search_experiments()]
        sweeps = client.search_runs(experiments, "tags.`kinopoisk_ft.kind` = 'sweep'")
        ids = [sweep.info.run_id for sweep in sweeps]
        raise UserError(
            f"there is no run '{parent}' in the store",
            where="--parent",
            fix=suggest_name(parent, ids) if ids else "omit --parent: the store has no sweeps",
        ) from error
    if run.data.tags.get("kinopoisk_ft.kind") in ("train", "skipped"):
        sweep = run.data.tags.get("mlflow.parentRunId")
        raise UserError(
            f"run '{parent}' is a training run, not a sweep",
            where="--parent",
            fix=f"pass its sweep: --parent {sweep}" if sweep else "omit --parent: it has no sweep",
        )
    return _active(client, client.get_experiment(run.info.experiment_id))


def _runs(client: MlflowClient, experiment_id: str, parent: str | None) -> list[Run]:
    if parent is None:
        return _search(client, experiment_id, "tags.`kinopoisk_ft.kind` = 'train'")
    of_sweep = f"tags.`mlflow.parentRunId` = '{parent}' and tags.`kinopoisk_ft.kind`"
    runs, skipped = (
        _search(client, experiment_id, f"{of_sweep} = '{kind}'") for kind in ("train", "skipped")
    )
    try:
        # A job is skipped if an identical run has finished, in this sweep or in another one.
        others = {job.data.tags[SAME_AS] for job in skipped} - {run.info.run_id for run in runs}
        return runs + [client.get_run(other) for other in others]
    except MlflowException as error:
        raise UserError(
            "a job of this sweep was skipped because an identical run existed, but that run is "
            f"missing now: {error.message}",
            where=f"sweep {parent}",
            fix="run the sweep again to train the missing run",
        ) from error


def _search(client: MlflowClient, experiment_id: str, terms: str) -> list[Run]:
    page = client.search_runs([experiment_id], terms)
    runs = [*page]
    while page.token:
        page = client.search_runs([experiment_id], terms, page_token=page.token)
        runs += page
    return runs


def _cause(client: MlflowClient, run: Run) -> tuple[str, str]:
    if run.info.status == "KILLED":
        return "killed", ""
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = client.download_artifacts(run.info.run_id, "traceback.txt", folder)
            text = Path(path).read_text(encoding="utf-8", errors="replace")
    except (MlflowException, OSError):
        return "no_traceback", ""
    # The exception is on the first line without indentation after the last traceback's header.
    lines = text.rpartition("Traceback (most recent call last):")[2].splitlines()
    rest = list(itertools.dropwhile(lambda line: not line[:1].strip(), lines))
    # If that line ends with a colon, the next line has the cause.
    line = " ".join(itertools.islice(rest, 2 if rest and rest[0].endswith(":") else 1))
    short = textwrap.shorten(to_one_line(line), CAUSE_CHARACTERS, placeholder=" …")
    return ("raised", short) if line else ("no_traceback", "")


def _newest(runs: list[TrainedRun], *, by_settings: bool) -> list[TrainedRun]:
    kept: dict[tuple[str, ...], TrainedRun] = {}
    # The oldest run comes first, so newer ones replace it.
    for run in runs:
        key = (run.approach, run.repetition, run.data, run.source_digest, run.split_digest)
        read = {name: run.settings.get(name) for name in READ}
        kept[(*key, str(run.settings if by_settings else read))] = run
    return list(kept.values())
