"""Brings the events of a run to an MLflow store: in order, each once, over broken connections."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass

from mlflow.entities import LifecycleStage, Run
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from sqlalchemy.exc import SQLAlchemyError

from kinopoisk_ft.errors import UserError
from kinopoisk_ft.tracking.events import OFFLINE, Event, EventLog
from kinopoisk_ft.tracking.experiment import absolute_uri, open_experiment, restore_command
from kinopoisk_ft.tracking.offline import PARENT_TAG
from kinopoisk_ft.tracking.sent import Sent, read_sent, sent_file
from kinopoisk_ft.tracking.store import UnreachableError, shown
from kinopoisk_ft.tracking.sweep import SAME_AS
from kinopoisk_ft.tracking.writes import MOST_METRICS, RunWriter

log = logging.getLogger(__name__)

LOG_TAG = "kinopoisk_ft.events"  # in the store: the id of the event log that a run was made from
REFUSALS = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST", "RESOURCE_ALREADY_EXISTS")
WITH_FILES = ("artifact", "model")


@dataclass(frozen=True)
class Target:
    """A store's address, the experiment in it, and where artifacts go if that is new."""

    uri: str | None
    experiment: str
    artifacts: str | None = None


class Delivery:
    """Delivers one log to one store.

    What it has sent is written down after each batch. Whether a batch has arrived whose answer has
    not, or that was sent as the process died, is looked up in the store: the run by a tag, metrics
    in their history. The rest can be repeated.

    Args:
        files: False leaves out artifacts, where a later run in the same folder has replaced them.
    """

    def __init__(self, events: EventLog, target: Target, files: bool = True) -> None:
        self.events, self.target, self.files = events, target, files
        self.uri = absolute_uri(target.uri)
        self.sent: Sent = read_sent(events)
        self.counts: Counter[str] = Counter()
        self._writer: RunWriter | None = None
        self._batch: list[Event] = []

    def step(self) -> bool:
        """Deliver the next events; returns False when there are none. Raises what a store raises.

        After an error the next call opens the store again and goes on where this one stopped.
        """
        try:
            if self._writer is None:
                self._writer = self._connect()
            self._batch = self._batch or self._next()
            if not self._batch:
                return False
            same = self._first_of_a_kind()
            self._deliver(self._writer, same)
        except BaseException:
            self._writer = None
            raise
        self._batch = self._batch[len(same) :]
        self._note(same[-1]["seq"])
        return True

    def retry(self) -> None:
        """Put what could not be sent at an earlier time before the rest."""
        self._batch = [e for e in self.events.all() if str(e["seq"]) in self.sent.refused]

    def left(self) -> int:
        """Return how many events on disk are still to be sent."""
        return sum(event["seq"] > self.sent.seq for event in self.events.all())

    def _next(self) -> list[Event]:
        self.events.sync()  # what a power cut may take back is not sent
        return self.events.after(self.sent.seq)

    def _first_of_a_kind(self) -> list[Event]:
        """Return the first events of the batch that one request can write."""
        same: list[Event] = []
        values = 0
        for event in self._batch:
            values += len(event.get("values", ()))
            other = bool(same) and (event["verb"], same[0]["verb"]) != ("metrics", "metrics")
            if other or (same and values > MOST_METRICS):
                break
            same.append(event)
        return same

    def _deliver(self, writer: RunWriter, events: list[Event]) -> None:
        if events[0]["verb"] in WITH_FILES and not self.files:
            self._refuse(events[0], "a later run in this folder has replaced its files")
            return
        if events[0]["verb"] == "tags":
            events = [e | {"values": self._resolved(writer.client, e["values"])} for e in events]
        try:
            writer.write(events)
        except (OSError, SQLAlchemyError):
            raise
        except MlflowException as error:
            run = _find(writer.client, writer.run_id)
            lost = run is None or _is_deleted(run)
            if lost or error.error_code not in REFUSALS:
                raise
            self._one_by_one(writer, events, error)
        except Exception as error:
            self._one_by_one(writer, events, error)
        else:
            for event in events:
                self.sent.refused.pop(str(event["seq"]), None)
        finally:
            self.counts += writer.counts
            writer.counts.clear()

    def _one_by_one(self, writer: RunWriter, events: list[Event], error: Exception) -> None:
        """Leave out what cannot be written, so that it does not hold up what comes after."""
        if len(events) == 1:
            self._refuse(events[0], str(error).splitlines()[0] if str(error) else repr(error))
            return
        writer.doubt(events[-1]["seq"])
        for event in events:
            self._deliver(writer, [event])

    def _refuse(self, event: Event, cause: str) -> None:
        what = event.get("path") or ", ".join(event.get("values", ())) or event["verb"]
        told = f"{event['verb']} {what[:80]}: {cause[:300]}"
        log.info("not sent: %s", told)
        self.sent.refused[str(event["seq"])] = told

    def _note(self, seq: int) -> None:
        self.sent.seq = max(self.sent.seq, seq)
        self.sent.save(sent_file(self.events))

    def _connect(self) -> RunWriter:
        """Open the store and find the run there, or make it."""
        client, experiment = open_experiment(
            self.uri, self.target.experiment, self.target.artifacts
        )
        known = self.sent.run_id if self.sent.uri == self.uri else ""
        run = _find(client, known) if known else None
        deleted = run is not None and _is_deleted(run)
        if run is not None and not deleted and run.data.tags.get(LOG_TAG) == self.events.id:
            return self._writer_of(client, known, self.events.seq)
        if deleted:
            text = "run %s is deleted: all its events are sent to a new run; to restore it: %s"
            log.warning(text, known, restore_command(self.uri, "runs", known))
        elif known:
            log.warning("a new run is opened: the store has lost %s", known)
        self.sent = Sent(uri=self.uri)
        self._batch = []
        self.events.rewind()
        found = find_run(client, self.events.id, [experiment])
        run_id = found or self._create(client, experiment)
        self.sent.run_id = run_id
        self._note(1)
        return self._writer_of(client, run_id, self.events.seq if found else 0)

    def _writer_of(self, client: MlflowClient, run_id: str, doubtful: int) -> RunWriter:
        events = self.events
        return RunWriter(client, run_id, events.folder, events.local_id, doubtful)

    def _create(self, client: MlflowClient, experiment: str) -> str:
        first = next(event for event in self.events.after(0) if event["verb"] == "start")
        self.events.rewind()
        tags = {**self._resolved(client, first["tags"]), LOG_TAG: self.events.id}
        run = client.create_run(
            experiment, start_time=first["time"], tags=tags, run_name=first["name"]
        )
        run_id: str = run.info.run_id
        return run_id

    def _resolved(self, client: MlflowClient, tags: dict[str, str]) -> dict[str, str]:
        """Return tags that name other runs as the store does."""
        named = {key: str(tags[key]) for key in (PARENT_TAG, SAME_AS) if key in tags}
        return tags | {key: self._resolve(client, key, value) for key, value in named.items()}

    def _resolve(self, client: MlflowClient, key: str, run_id: str) -> str:
        """Return the id that the store has for another run, which may have begun without it."""
        where = f"tracking.uri={shown(self.uri)}"
        kind = "sweep's parent" if key == PARENT_TAG else "identical"
        if not run_id.startswith(OFFLINE):
            run = _find(client, run_id)
            if run is None:
                raise UserError(
                    f"the {kind} run {run_id} is not in the job's store",
                    where=where,
                    fix="keep one tracking.uri for all jobs of a sweep",
                )
            if _is_deleted(run):
                raise UserError(
                    f"the {kind} run {run_id} is deleted",
                    where=where,
                    fix=f"restore it: {restore_command(self.uri, 'runs', run_id)}; "
                    "or start the sweep in another output_dir",
                )
            return run_id
        everywhere = [e.experiment_id for e in client.search_experiments()]
        found = find_run(client, run_id.removeprefix(OFFLINE), everywhere)
        if found is None:
            raise UnreachableError(
                f"the {kind} run {run_id} is not in the store yet",
                where=where,
                fix="send the sweep's whole folder",
            )
        return found


def find_run(client: MlflowClient, log_id: str, experiments: list[str]) -> str | None:
    """Return the run that was made from a log, None if there is none."""
    found = client.search_runs(experiments, f"tags.`{LOG_TAG}` = '{log_id}'", max_results=1)
    return found[0].info.run_id if found else None


def _find(client: MlflowClient, run_id: str) -> Run | None:
    """Return a run, deleted or not; None if the store has no such run."""
    try:
        return client.get_run(run_id)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise


def _is_deleted(run: Run) -> bool:
    return run.info.lifecycle_stage != LifecycleStage.ACTIVE
