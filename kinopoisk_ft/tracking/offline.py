"""A tracker that needs no network: all it is told waits in the run's folder to be sent."""

from __future__ import annotations

import logging
import os
import socket
from pathlib import Path
from typing import Any

from kinopoisk_ft.config.prepared import flatten
from kinopoisk_ft.tracking.base import Tracker
from kinopoisk_ft.tracking.events import FOLDER, EventLog, event_logs, start_of
from kinopoisk_ft.tracking.places import portable
from kinopoisk_ft.tracking.sent import finished, read_sent

log = logging.getLogger(__name__)

LOCK_PATIENCE = 10.0  # seconds for whoever sends the same run's events to come to an end
PARENT_TAG = "mlflow.parentRunId"


class OfflineTracker:
    """Implements the tracker's verbs by appending to the run's event log.

    `python -m kinopoisk_ft.sync <folder>` makes MLflow runs of the logs.
    """

    def __init__(
        self, *, uri: str | None, artifacts: str | None, experiment: str, log_model: bool
    ) -> None:
        self.uri, self.artifacts, self.experiment = uri, artifacts, experiment
        self.log_model = log_model
        self._recorded: set[tuple[str, int]] = set()
        self._has_files = False

    def find(self, tags: dict[str, str]) -> dict[str, str] | None:
        """Return None: no store is asked."""
        return None

    def start(
        self,
        name: str,
        config: dict[str, Any],
        tags: dict[str, str],
        parent: str | None = None,
        kept: str | None = None,
        *,
        folder: Path,
    ) -> str:
        """Begin a log in the run's folder, or go on with the one of an unfinished run."""
        events = _log_of(folder, kept) if kept else None
        if kept and events is None:
            log.warning("a new run is opened: there is nothing of %s in %s", kept, folder)
        self._is_new = events is None
        self._events = events or EventLog.new(folder)
        self._events.open(LOCK_PATIENCE)
        params = {key: str(value) for key, value in flatten(config).items()}
        if events is None:
            tags = {**tags, PARENT_TAG: parent} if parent is not None else tags
            address = self._address()
            self._tell(
                "start", name=name, tags=tags, uri=address, experiment=self.experiment,
                artifacts=self.artifacts, host=socket.gethostname(),
            )  # fmt: skip
        else:
            self._reopen(params, parent)
        if params:
            self._tell("params", values=params)
        self._events.sync()
        return self._events.local_id

    def _address(self) -> str | None:
        """Return where the run is to be sent if whoever sends it names no store."""
        return self.uri or os.environ.get("MLFLOW_TRACKING_URI") or None

    def _reopen(self, params: dict[str, str], parent: str | None) -> None:
        """Note what the log has: it is not told twice. A sweep that is started again is its parent.

        The sweep's report is of the runs that name it, and a run's start may name one that was
        killed.
        """
        tags = tags_of(self._events)
        for event in self._events.all():
            if event["verb"] == "params":
                for key in event["values"]:
                    params.pop(key, None)
            elif event["verb"] == "metrics":
                self._recorded |= {(key, event["step"]) for key in event["values"]}
        self._tell("reopen")
        if parent is not None and tags.get(PARENT_TAG) != parent:
            self._tell("tags", values={PARENT_TAG: parent})

    def metrics(self, values: dict[str, float], step: int) -> None:
        """Record values at an optimizer step, but those that were recorded before a stop."""
        new = {k: float(v) for k, v in values.items() if (k, step) not in self._recorded}
        if new:
            self._tell("metrics", values=new, step=step)

    def flush(self) -> None:
        """Force what was told to disk: a checkpoint is about to rely on it."""
        self._events.sync()

    def tags(self, values: dict[str, str]) -> None:
        """Add tags."""
        self._tell("tags", values=values)

    def artifact(self, path: Path) -> None:
        """Keep a file of the run's folder, or a folder in it under its own name."""
        if not self._has_files:
            _warn_of_replaced(self._events)
            self._has_files = True
        self._tell("artifact", path=portable(path, self._events.folder))

    def model(self, folder: Path, code: Path, class_names: tuple[str, ...]) -> None:
        """Keep a model folder with the code file that serves it."""
        if self.log_model:
            path, code_path = (portable(one, self._events.folder) for one in (folder, code))
            self._tell("model", path=path, code=code_path, class_names=list(class_names))

    def finish(self, status: str) -> None:
        """Note the run's end and say how it is sent."""
        self._tell("finish", status=status)
        self._events.tell_losses(0)
        self._events.close()
        log.info("to send this run to MLflow: %s", sync_command(self._events.folder))

    def _tell(self, verb: str, **content: Any) -> None:
        self._events.append(verb, **content)


def sync_command(folder: Path) -> str:
    """Return what sends the runs of a folder."""
    return f"python -m kinopoisk_ft.sync {folder}"


def find_unsent(folder: Path, wanted: dict[str, str]) -> dict[str, str] | None:
    """Return the tags of the newest finished run below a folder that no store has; None without.

    Args:
        wanted: tags that it must have.
    """
    for events in reversed(event_logs(folder)):
        tags, status, last = tags_of(events), "", 0
        for event in events.all():
            last = event["seq"]
            status = event.get("status", status)
        unsent = read_sent(events).seq < last
        if unsent and status == "FINISHED" and finished(events) and wanted.items() <= tags.items():
            return tags
    return None


def tags_of(events: EventLog) -> dict[str, str]:
    """Return the tags that a run has by the end of its log."""
    tags: dict[str, str] = {}
    for event in events.all():
        given = event.get({"start": "tags", "tags": "values"}.get(event["verb"], ""))
        tags |= given if isinstance(given, dict) else {}
    return tags


def unended(folder: Path) -> list[EventLog]:
    """Return the logs of a folder's own runs that tell of no end: they go on, or were killed."""
    here = [events for events in event_logs(folder) if events.folder == folder]
    return [events for events in here if not finished(events)]


def close_killed(tracker: Tracker, folder: Path, kept: str | None) -> None:
    """Close, as KILLED, the runs of a folder whose processes died, except the one that goes on.

    Args:
        tracker: has started no run, and starts none afterwards that records metrics.
        kept: the id of the run that goes on, None where a new one begins.
    """
    for killed in unended(folder):
        if kept not in names(killed):
            tracker.start(killed.id, {}, {}, kept=killed.local_id, folder=folder)
            tracker.finish("KILLED")


def names(events: EventLog) -> set[str]:
    """Return what the run of a log is called: by itself, and by a store that has it."""
    return {events.local_id, read_sent(events).run_id} - {""}


def _warn_of_replaced(events: EventLog) -> None:
    """Say whose files in the folder this run is about to replace before they were sent."""
    for file in events.file.parent.glob("*.jsonl"):
        other = EventLog(file)
        unsent = [e for e in other.all() if e["seq"] > read_sent(other).seq]
        if other.id != events.id and any(event["verb"] == "artifact" for event in unsent):
            name = next(other.all()).get("name")
            text = "this replaces files of a run that is not sent yet: %s; to send it before, %s"
            log.warning(text, name, sync_command(events.folder))


def _log_of(folder: Path, run_id: str) -> EventLog | None:
    """Return the log of a run under either of its names, None if the folder has none."""
    for file in (folder / FOLDER).glob("*.jsonl"):
        events = EventLog(file)
        if run_id in names(events) and start_of(events):
            return events
    return None
