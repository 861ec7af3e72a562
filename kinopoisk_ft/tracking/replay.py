"""Send the event log of a run to an MLflow store, in order and without duplicates."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, islice, takewhile
from pathlib import Path
from typing import Any

from mlflow.entities import LifecycleStage, Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from mlflow.utils.validation import MAX_PARAM_VAL_LENGTH
from sqlalchemy.exc import SQLAlchemyError

from kinopoisk_ft.errors import UserError, first_line
from kinopoisk_ft.text import hide_password
from kinopoisk_ft.tracking.event_log import OFFLINE, Event, EventLog, ReplayState
from kinopoisk_ft.tracking.logged_model import (
    link_metrics,
    log_dataset,
    log_model,
    register_model,
)
from kinopoisk_ft.tracking.mlflow_names import has_flat_names, readable_params, to_mlflow
from kinopoisk_ft.tracking.offline import NOTE_TAG, PARENT_TAG, resolve_path
from kinopoisk_ft.tracking.store import absolute_uri, open_experiment, restore_command
from kinopoisk_ft.tracking.store_schema import UnreachableError
from kinopoisk_ft.tracking.sweep import SAME_AS

log = logging.getLogger(__name__)

# MLflow tag with the id of the event log from which a run was created.
LOG_TAG = "kinopoisk_ft.events"
# Size in bytes of the largest JSON artifact in which the run's local id is replaced.
MAX_JSON = 2**20
# Tags of a run that name the user and the source code.
SOURCE_TAGS = ("mlflow.user", "mlflow.source.")
# MLflow's limits per request: https://mlflow.org/docs/latest/rest-api.html#log-batch
MAX_PARAMS = MAX_TAGS = 100
MAX_METRICS = 1000
# Error codes of requests that would fail again if they were repeated.
REFUSALS = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST", "RESOURCE_ALREADY_EXISTS")


@dataclass(frozen=True)
class Target:
    """The destination of a run: an MLflow store and an experiment.

    Args:
        artifacts: the artifact location of a new experiment.
    """

    uri: str | None
    experiment: str
    artifacts: str | None = None


class Replay:
    """The transfer of one event log to one store.

    The process may be killed and restarted at any time. The position in the log is saved after each
    call of `step`, so the events of at most one call are sent again. This creates no duplicates.
    An existing run is found by a tag with the id of the event log. MLflow's databases ignore a
    second metric with the same step, time and value. All other requests overwrite values.

    If an earlier version of this project has sent a part of the run, the remaining metrics and
    params have the same names as in that version (flat names).

    Args:
        files: whether to send artifacts; False if a later run has overwritten the files.
    """

    def __init__(self, event_log: EventLog, target: Target, files: bool = True) -> None:
        self.event_log, self.target, self.files = event_log, target, files
        self.uri = absolute_uri(target.uri)
        self.counts: Counter[str] = Counter()
        self._client: MlflowClient | None = None
        self._has_flat_names = False
        # Events that were rejected earlier are retried before all others.
        self._retries = [e for e in event_log.events if str(e["seq"]) in event_log.state.refused]

    @property
    def run_id(self) -> str:
        """Return the run's id in the store, or "" before the store has answered."""
        return self.event_log.state.run_id

    def step(self) -> bool:
        """Send the next events; return False if there are none.

        If this raises an exception, the next call reconnects to the store and tries again.
        """
        try:
            client = self._client = self._client or self._connect()
            batch = self._next_batch()
            if not batch:
                return False
            self._send(client, batch)
        except BaseException:
            self._client = None
            raise
        return True

    def _next_batch(self) -> list[Event]:
        if self._retries:
            # Send one event at a time: it may have any verb, and `_write` joins only metrics.
            return self._retries[:1]
        events = self.event_log.after(self.event_log.state.seq)
        if events:
            # After a power loss, the log must still contain all events that the store has.
            self.event_log.sync()
        metrics = takewhile(lambda event: event["verb"] == "metrics", events)
        sizes = accumulate(len(event["values"]) for event in metrics)
        count = sum(1 for _ in takewhile(lambda size: size <= MAX_METRICS, sizes))
        # An event with more than MAX_METRICS values is sent alone, and `_write` splits its values.
        return events[: max(1, count)]

    def _send(self, client: MlflowClient, batch: list[Event]) -> None:
        state = self.event_log.state
        try:
            self._write(client, batch)
        except Exception as error:
            if self._is_retryable(client, error):
                raise
            if len(batch) > 1:
                # MLflow does not say which value is invalid, so send each event separately.
                for event in batch:
                    self._send(client, [event])
                return
            self._refuse(batch[0], first_line(error))
        else:
            for event in batch:
                state.refused.pop(str(event["seq"]), None)
        self._retries = [event for event in self._retries if event is not batch[0]]
        state.seq = max(state.seq, batch[-1]["seq"])
        self.event_log.save_state()

    def _is_retryable(self, client: MlflowClient, error: Exception) -> bool:
        if isinstance(error, MlflowException):
            # If the run was deleted in the store, the next attempt sends its events to a new run.
            is_refusal = error.error_code in REFUSALS
            return not is_refusal or find_run(client, self.event_log.id) != self.run_id
        return isinstance(error, OSError | SQLAlchemyError | UserError)

    def _refuse(self, event: Event, reason: str) -> None:
        what = event["path"] if event["verb"] in ("artifact", "model") else event["verb"]
        if event["verb"] in ("params", "metrics", "tags"):
            what = ", ".join(event["values"])
        text = f"{event['verb']} {what[:80]}: {reason[:300]}"
        log.info("not sent: %s", text)
        self.event_log.state.refused[str(event["seq"])] = text

    def _write(self, client: MlflowClient, batch: list[Event]) -> None:
        # A batch has several events only if all of them are metrics.
        event, run_id = batch[0], self.run_id
        match event["verb"]:
            case "metrics":
                metrics = [
                    Metric(self._name(key), float(value), event["time"], event["step"])
                    for event in batch
                    for key, value in event["values"].items()
                ]
                for part in _split(metrics, MAX_METRICS):
                    client.log_batch(run_id, metrics=part)
                self.counts["metrics"] += len(metrics)
            case "params":
                self._write_params(client, event["values"])
            case "tags":
                values = self._resolve_runs(client, event["values"])
                tags = [RunTag(key, self._insert_run_id(text)) for key, text in values.items()]
                for part in _split(tags, MAX_TAGS):
                    client.log_batch(run_id, tags=part)
                self.counts["tags"] += len(tags)
            case "artifact":
                self._write_artifact(client, self._find_file(event["path"]))
            case "dataset":
                log_dataset(client, run_id, event["context"], event["values"])
                self.counts["datasets"] += 1
            case "model":
                self._write_model(client, event)
            case "register":
                register_model(client, run_id, event["name"])
                self.counts["registered models"] += 1
            case "reopen":
                # The error of the interrupted attempt does not apply to the resumed run.
                if "error" in client.get_run(run_id).data.tags:
                    client.delete_tag(run_id, "error")
                client.update_run(run_id, status="RUNNING")
            case "finish":
                # `sync` may send this event days later, so the time comes from the event.
                client.set_terminated(run_id, event["status"], end_time=event["time"])
            case verb:
                raise ValueError(f"this version cannot send the event '{verb}'")

    def _name(self, metric: str) -> str:
        return metric if self._has_flat_names else to_mlflow(metric)

    def _write_params(self, client: MlflowClient, texts: dict[str, str]) -> None:
        texts = texts if self._has_flat_names else readable_params(texts)
        # MLflow does not store longer values, so they go to long_params.json.
        long = {key: text for key, text in texts.items() if len(text) > MAX_PARAM_VAL_LENGTH}
        short = texts | dict.fromkeys(long, "in long_params.json")
        for part in _split([Param(*item) for item in short.items()], MAX_PARAMS):
            client.log_batch(self.run_id, params=part)
        if long:
            text = json.dumps(long, ensure_ascii=False, indent=2)
            client.log_text(self.run_id, text, "long_params.json")
        self.counts["params"] += len(texts)

    def _write_model(self, client: MlflowClient, event: Event) -> None:
        folder, code = (self._find_file(event[key]) for key in ("path", "code"))
        tags = self.event_log.tags
        about = {
            key: self._insert_run_id(text)
            for key, text in tags.items()
            if key == NOTE_TAG or key.startswith(SOURCE_TAGS)
        }
        name = tags.get("approach", "model")
        model_id = log_model(client, self.run_id, folder, code, event["class_names"], name, about)
        metrics = [
            (self._name(name), value, event["time"], event["step"])
            for event in self.event_log.events
            if event["verb"] == "metrics"
            for name, value in event["values"].items()
            if to_mlflow(name).startswith("test/")
        ]
        link_metrics(client, self.run_id, model_id, metrics)
        self.counts["models"] += 1

    def _write_artifact(self, client: MlflowClient, path: Path) -> None:
        run_id, local_id = self.run_id, self.event_log.local_id.encode()
        is_small_json = path.suffix == ".json" and path.stat().st_size <= MAX_JSON
        if path.is_dir():
            client.log_artifacts(run_id, str(path), artifact_path=path.name)
        elif is_small_json and local_id in path.read_bytes():
            # result.json contains the id that the run had during training.
            text = self._insert_run_id(path.read_text(encoding="utf-8"))
            client.log_text(run_id, text, path.name)
        else:
            client.log_artifact(run_id, str(path))
        self.counts["artifacts"] += 1

    def _find_file(self, name: str) -> Path:
        if not self.files:
            raise ValueError("a later run in this folder has overwritten its files")
        path = resolve_path(name, self.event_log.folder)
        if not path.exists():
            raise ValueError(f"{path} does not exist any more")
        return path

    def _insert_run_id(self, text: str) -> str:
        return text.replace(self.event_log.local_id, self.run_id)

    def _connect(self) -> MlflowClient:
        target, known = self.target, self.event_log.state
        client, experiment = open_experiment(self.uri, target.experiment, target.artifacts)
        # If the run was sent before, search all experiments, because its experiment may have been
        # renamed.
        run_id = find_run(client, self.event_log.id, None if known.run_id else [experiment])
        if run_id is None or (known.uri, known.run_id) != (self.uri, run_id):
            if run_id is None and known.uri == self.uri and known.run_id:
                self._warn_of_loss(client, known.run_id)
            start = self.event_log.events[0]
            run_id = run_id or self._create(client, experiment, start)
            # The saved position belongs to another run or store, so all events are sent again.
            self._retries = []
            self.event_log.state = ReplayState(self.uri, run_id, start["seq"])
            self.event_log.save_state()
        sent = client.get_run(run_id).data
        self._has_flat_names = has_flat_names(sent.metrics, sent.params)
        return client

    def _create(self, client: MlflowClient, experiment: str, start: Event) -> str:
        tags = {**self._resolve_runs(client, start["tags"]), LOG_TAG: self.event_log.id}
        run = client.create_run(
            experiment, start_time=start["time"], tags=tags, run_name=start["name"]
        )
        return str(run.info.run_id)

    def _warn_of_loss(self, client: MlflowClient, run_id: str) -> None:
        if is_deleted(client, run_id):
            text = "run %s is deleted, so all its events are sent to a new run; to restore it: %s"
            log.warning(text, run_id, restore_command(self.uri, "runs", run_id))
        else:
            log.warning("run %s is not in the store any more, so a new run is created", run_id)

    def _resolve_runs(self, client: MlflowClient, tags: dict[str, str]) -> dict[str, str]:
        """Replace local run ids in tags with ids in the store."""
        keys = [key for key in (PARENT_TAG, SAME_AS) if key in tags]
        return tags | {key: self._resolve_run(client, key, tags[key]) for key in keys}

    def _resolve_run(self, client: MlflowClient, key: str, run_id: str) -> str:
        where = f"tracking.uri={hide_password(self.uri)}"
        run = f"the {'parent' if key == PARENT_TAG else 'identical'} run {run_id}"
        if run_id.startswith(OFFLINE):
            found = find_run(client, run_id.removeprefix(OFFLINE))
            if found is None:
                fix = "run kinopoisk-ft sync with the folder of the whole sweep"
                raise UnreachableError(f"{run} has not been sent yet", where=where, fix=fix)
            return found
        deleted = is_deleted(client, run_id)
        if deleted is None:
            fix = "use the same tracking.uri for all jobs of a sweep"
            raise UserError(f"{run} is not in this MLflow store", where=where, fix=fix)
        if deleted:
            restore = restore_command(self.uri, "runs", run_id)
            fix = f"restore it: {restore}; or start the sweep in another output_dir"
            raise UserError(f"{run} has been deleted", where=where, fix=fix)
        return run_id


def find_run(client: MlflowClient, log_id: str, experiments: list[str] | None = None) -> str | None:
    """Return the id of the run that was created from an event log, or None if there is none.

    Deleted runs are ignored.

    Args:
        experiments: the ids of the experiments to search; if None, all are searched.
    """
    if experiments is None:
        experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    found = client.search_runs(experiments, f"tags.`{LOG_TAG}` = '{log_id}'", max_results=1)
    return str(found[0].info.run_id) if found else None


def is_deleted(client: MlflowClient, run_id: str) -> bool | None:
    """Return whether a run is deleted, or None if the store has no such run."""
    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise
    return bool(run.info.lifecycle_stage != LifecycleStage.ACTIVE)


def _split(items: Sequence[Any], size: int) -> Iterator[list[Any]]:
    rest = iter(items)
    while part := list(islice(rest, size)):
        yield part
