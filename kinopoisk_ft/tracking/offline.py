"""Track a run without a network: everything waits in its folder until `sync` sends it."""

from __future__ import annotations

import logging
import os
import socket
from pathlib import Path
from typing import Any

from kinopoisk_ft.config.prepared import flatten
from kinopoisk_ft.tracking.base import Tracker
from kinopoisk_ft.tracking.event_log import (
    FOLDER,
    EventLog,
    find_logs,
    read_end,
    read_start,
    read_state,
    read_tags,
)

log = logging.getLogger(__name__)

# Seconds to wait while `sync` sends the events of the same run.
LOCK_PATIENCE = 10.0
# MLflow's user interface nests runs by this tag.
PARENT_TAG = "mlflow.parentRunId"
PACKAGE = Path(__file__).resolve().parents[1]


class OfflineTracker:
    """Append everything that a run records to its event log.

    `python -m kinopoisk_ft.sync <folder>` creates MLflow runs from the logs.
    """

    def __init__(
        self, *, uri: str | None, artifacts: str | None, experiment: str, log_model: bool
    ) -> None:
        self.uri, self.artifacts, self.experiment = uri, artifacts, experiment
        self.log_model = log_model
        self._recorded: set[tuple[str, int]] = set()
        self._has_artifacts = False

    def find(self, tags: dict[str, str]) -> dict[str, str] | None:
        """Return None: an offline tracker asks no store."""
        return None

    def start(
        self,
        name: str,
        config: dict[str, Any],
        tags: dict[str, str],
        parent: str | None = None,
        resume: str | None = None,
        *,
        folder: Path,
    ) -> str:
        """Create a log in the run's folder, or continue the log of an unfinished run."""
        events = _find_log(folder, resume) if resume else None
        if resume and events is None:
            log.warning("a new run is created: %s has no events of run %s", folder, resume)
        self._is_new = events is None
        self._events = events or EventLog.new(folder)
        self._events.open(LOCK_PATIENCE)
        # MLflow keeps params as text.
        params = {key: str(value) for key, value in flatten(config).items()}
        if events is None:
            tags = {**tags, PARENT_TAG: parent} if parent is not None else tags
            self._events.append(
                "start", name=name, tags=tags, uri=self._get_uri(), experiment=self.experiment,
                artifacts=self.artifacts, host=socket.gethostname(),
            )  # fmt: skip
        else:
            self._reopen(params, parent)
        if params:
            self._events.append("params", values=params)
        self._events.sync()
        return self._events.local_id

    def _get_uri(self) -> str | None:
        """Return the store to which `sync` sends the run by default."""
        return self.uri or os.environ.get("MLFLOW_TRACKING_URI") or None

    def _reopen(self, params: dict[str, str], parent: str | None) -> None:
        """Remember what the log already has, so that nothing is recorded twice.

        The run becomes a child of the sweep that resumes it, because its first parent may have
        been killed and a sweep's report shows its own children.
        """
        tags = read_tags(self._events)
        for event in self._events.events():
            if event["verb"] == "params":
                for key in event["values"]:
                    params.pop(key, None)
            elif event["verb"] == "metrics":
                self._recorded |= {(key, event["step"]) for key in event["values"]}
        self._events.append("reopen")
        if parent is not None and tags.get(PARENT_TAG) != parent:
            self.tags({PARENT_TAG: parent})

    def metrics(self, values: dict[str, float], step: int) -> None:
        """Record values at an optimizer step, except values recorded before an interruption."""
        new = {k: float(v) for k, v in values.items() if (k, step) not in self._recorded}
        if new:
            self._events.append("metrics", values=new, step=step)

    def flush(self) -> None:
        """Force all events to disk before a checkpoint relies on them."""
        self._events.sync()

    def tags(self, values: dict[str, str]) -> None:
        """Add tags."""
        self._events.append("tags", values=values)

    def artifact(self, path: Path) -> None:
        """Record a file of the run's folder, or a folder in it under its own name."""
        if not self._has_artifacts:
            _warn_if_replaced(self._events)
            self._has_artifacts = True
        self._events.append("artifact", path=portable_path(path, self._events.folder))

    def model(self, folder: Path, code: Path, class_names: tuple[str, ...]) -> None:
        """Record a model folder with the code file that serves it."""
        # The model stays in the run's folder in any case.
        if self.log_model:
            path, code_path = (portable_path(one, self._events.folder) for one in (folder, code))
            self._events.append("model", path=path, code=code_path, class_names=list(class_names))

    def finish(self, status: str) -> None:
        """Record the end of the run and log the command that sends it."""
        self._events.append("finish", status=status)
        self._close(sent=0)
        log.info("to send this run to MLflow: %s", sync_command(self._events.folder))

    def _close(self, sent: int) -> None:
        """Close the log; report events that neither the disk nor a store has.

        Args:
            sent: the last event that a store has.
        """
        if lost := len(self._events.unwritten(sent)):
            log.error("%d events are lost: the disk is full and no MLflow store has them", lost)
        self._events.close()


def portable_path(path: Path, folder: Path) -> str:
    """Return a path as `run:...` or `package:...`, so that a run's folder can be moved.

    Raises:
        ValueError: the file is neither in the run's folder nor in this package.
    """
    for name, root in (("run", folder), ("package", PACKAGE)):
        if path.resolve().is_relative_to(root.resolve()):
            return f"{name}:{path.resolve().relative_to(root.resolve()).as_posix()}"
    raise ValueError(f"{path} is not in the run's folder {folder}")


def resolve_path(text: str, folder: Path) -> Path:
    """Return the file that `portable_path` named.

    Raises:
        ValueError: it is outside its root; the log may come from someone else.
    """
    name, _, inner = text.partition(":")
    root = {"run": folder, "package": PACKAGE}.get(name, folder).resolve()
    path = (root / (inner or text)).resolve()
    # A symbolic link could send any file of the user to the store.
    links = (one.resolve() for one in path.rglob("*") if one.is_symlink())
    if not all(one.is_relative_to(root) for one in (path, *links)):
        raise ValueError(f"'{text}' is outside the run's folder")
    return path


def sync_command(folder: Path) -> str:
    """Return the command that sends the runs of a folder."""
    return f"python -m kinopoisk_ft.sync {folder}"


def find_unsent(folder: Path, wanted: dict[str, str]) -> dict[str, str] | None:
    """Return the tags of the newest finished run below a folder that no store has completely.

    Args:
        wanted: tags that the run must have.

    Returns:
        None if there is no such run.
    """
    for events in reversed(find_logs(folder)):
        last = max(event["seq"] for event in events.events())
        is_unsent = read_state(events).seq < last
        tags = read_tags(events)
        if is_unsent and read_end(events) == "FINISHED" and wanted.items() <= tags.items():
            return tags
    return None


def close_killed(tracker: Tracker, folder: Path, resumed: str | None) -> None:
    """Close, as KILLED, the runs of a folder whose processes died.

    Args:
        tracker: has started no run, and starts none afterwards that records metrics.
        resumed: the id of the run that stays open to be resumed; None if a new run begins.
    """
    for events in find_logs(folder):
        if events.folder == folder and not read_end(events) and resumed not in _get_ids(events):
            tracker.start(events.id, {}, {}, resume=events.local_id, folder=folder)
            tracker.finish("KILLED")


def _get_ids(events: EventLog) -> set[str]:
    """Return the run's own id and the id that a store has assigned."""
    return {events.local_id, read_state(events).run_id} - {""}


def _find_log(folder: Path, run_id: str) -> EventLog | None:
    """Return the log in a run's folder that has one of these ids; None if there is none."""
    for file in (folder / FOLDER).glob("*.jsonl"):
        events = EventLog(file)
        if run_id in _get_ids(events) and read_start(events):
            return events
    return None


def _warn_if_replaced(events: EventLog) -> None:
    """Warn if this run is about to replace files of an earlier run that are not sent yet."""
    for file in events.file.parent.glob("*.jsonl"):
        other = EventLog(file)
        sent = read_state(other).seq
        unsent = (event["verb"] for event in other.events() if event["seq"] > sent)
        if other.id != events.id and "artifact" in unsent:
            name = (read_start(other) or {}).get("name", other.id)
            text = "this run replaces files of the run '%s', which is not sent yet; to send it: %s"
            log.warning(text, name, sync_command(events.folder))
