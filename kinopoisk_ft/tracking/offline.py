"""Record a run in an event log, which can be sent to MLflow later."""

from __future__ import annotations

import getpass
import itertools
import logging
import os
import re
import shlex
import socket
from pathlib import Path
from typing import Any

from kinopoisk_ft.config.prepared import flatten
from kinopoisk_ft.errors import UserError
from kinopoisk_ft.files import PACKAGE
from kinopoisk_ft.text import hide_password
from kinopoisk_ft.tracking.base import Tracker
from kinopoisk_ft.tracking.event_log import FOLDER, OFFLINE, EventLog, find_logs

log = logging.getLogger(__name__)

# The id may come from a file of somebody else, and becomes the name of a file.
LOCAL_ID = re.compile(f"{OFFLINE}[0-9a-f]{{24}}")
# Seconds to wait for the log's lock if `sync` is sending the same run.
LOCK_PATIENCE = 10.0
# MLflow's user interface shows a run with this tag below its parent run.
PARENT_TAG = "mlflow.parentRunId"
# MLflow's user interface shows this tag as the description of a run or model, in Markdown.
NOTE_TAG = "mlflow.note.content"


class OfflineTracker(Tracker):
    """A tracker that writes an event log in the run's folder.

    `kinopoisk-ft sync <folder>` sends the log to MLflow.
    """

    def __init__(
        self,
        *,
        uri: str | None,
        artifacts: str | None,
        experiment: str,
        log_model: bool,
        register: str | None = None,
        system_metrics: bool = False,
    ) -> None:
        _check_register(register, log_model)
        self.uri, self.artifacts, self.experiment = uri, artifacts, experiment
        self.log_model, self.register, self.system_metrics = log_model, register, system_metrics
        self._monitor: Any = None
        self._recorded: set[tuple[str, int]] = set()
        self._has_artifacts = False

    def find(self, tags: dict[str, str], folder: Path) -> dict[str, str] | None:
        return find_recorded(folder, tags)

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
        """Start or resume a run in an event log.

        Returns:
            The id of the run: its local id, or its id in the store if the store has assigned one.
        """
        found = _find_log(folder, resume) if resume else None
        self._is_new = found is None
        self._log = found or _new_log(folder, resume)
        self._log.open(LOCK_PATIENCE)
        # MLflow stores params as strings. Other people may read the store.
        params = {key: hide_password(str(value)) for key, value in flatten(config).items()}
        if self._is_new:
            tags = {**_describe_source(tags), **{k: hide_password(v) for k, v in tags.items()}}
            tags = {**tags, PARENT_TAG: parent} if parent is not None else tags
            self._log.append(
                "start", name=name, tags=tags, uri=self.get_uri(), experiment=self.experiment,
                artifacts=self.artifacts, host=socket.gethostname(),
            )  # fmt: skip
        else:
            self._reopen(params, parent)
        if params:
            self._log.append("params", values=params)
        # The caller saves the id in `unfinished.json`, so the log must be on disk before that file.
        self._log.sync()
        # `close_killed` passes no tags: the load of this process is not the load of the killed run.
        if self.system_metrics and tags:
            self._start_monitor()
        return self._assign_id()

    def _assign_id(self) -> str:
        return self._log.local_id

    def get_uri(self) -> str | None:
        # The store to which `sync` sends the run by default.
        return self.uri or os.environ.get("MLFLOW_TRACKING_URI") or None

    def _reopen(self, params: dict[str, str], parent: str | None) -> None:
        tags = self._log.tags
        for event in self._log.events:
            if event["verb"] == "params":
                # The caller then records only params that are not in the log.
                for key in event["values"]:
                    params.pop(key, None)
            elif event["verb"] == "metrics":
                self._recorded |= {(key, event["step"]) for key in event["values"]}
        self._log.append("reopen")
        # A sweep's report shows only children of the sweep's parent run.
        if parent is not None and tags.get(PARENT_TAG) != parent:
            self.tags({PARENT_TAG: parent})

    def _start_monitor(self) -> None:
        # This module imports MLflow, which offline runs do not need otherwise.
        from kinopoisk_ft.tracking.system_metrics import PREFIX, SystemMonitor

        steps = [step for name, step in self._recorded if name.startswith(PREFIX)]
        self._monitor = SystemMonitor(self.metrics, max(steps, default=-1) + 1)

    def _stop_monitor(self) -> None:
        if self._monitor is not None:
            self._monitor.stop()

    def metrics(self, values: dict[str, float], step: int) -> None:
        """Record metrics; skip those that a resumed run recorded before it was interrupted."""
        new = {k: float(v) for k, v in values.items() if (k, step) not in self._recorded}
        if new:
            self._log.append("metrics", values=new, step=step)

    def flush(self) -> None:
        self._log.sync()

    def tags(self, values: dict[str, str]) -> None:
        self._log.append("tags", values=values)

    def artifact(self, path: Path) -> None:
        if not self._has_artifacts:
            _warn_if_replaced(self._log)
            self._has_artifacts = True
        self._log.append("artifact", path=portable_path(path, self._log.folder))

    def dataset(self, context: str, values: dict[str, str]) -> None:
        """Record a part of the data; its name is the chosen option of the config group `data`."""
        name = self._log.tags.get("data", "data")
        self._log.append("dataset", context=context, values={"name": name, **values})

    def model(self, folder: Path, code: Path, class_names: tuple[str, ...]) -> None:
        # Without `log_model`, the model is only in the run's folder.
        if self.log_model:
            path, code_path = (portable_path(one, self._log.folder) for one in (folder, code))
            self._log.append("model", path=path, code=code_path, class_names=list(class_names))
            if self.register is not None:
                self._log.append("register", name=self.register)

    def finish(self, status: str, time: int | None = None) -> None:
        self._stop_monitor()
        self._log.append("finish", status=status, **({} if time is None else {"time": time}))
        self._send_rest(status)
        if lost := self._log.count_lost():
            log.error("%d events are lost: the disk is full and no MLflow store has them", lost)
        self._log.close()

    def _send_rest(self, status: str) -> None:
        log.info("to send this run to MLflow: %s", sync_command(self._log.folder))


def _check_register(name: str | None, log_model: bool) -> None:
    if name is None:
        return
    if not log_model:
        raise UserError(
            "a model that is not sent to MLflow cannot be registered",
            where="tracking.register",
            fix="set tracking.log_model=true",
        )
    if not name.strip() or set(name) & set("/:'\"`"):
        raise UserError(
            f"'{name}' is not the name of a registered model",
            where="tracking.register",
            fix="choose a name without slashes, colons and quotes, for example reviews",
        )


def _describe_source(tags: dict[str, str]) -> dict[str, str]:
    """Return the tags that fill the columns "User", "Source" and "Version" of MLflow's UI."""
    try:
        user = getpass.getuser()
    # A process in a container may have a user id without a name.
    except (KeyError, OSError):
        user = "unknown"
    source = {"mlflow.user": user, "mlflow.source.name": "kinopoisk-ft train",
              "mlflow.source.type": "LOCAL"}  # fmt: skip
    commit = tags.get("commit", "unknown").removesuffix("-dirty")
    return source if commit == "unknown" else source | {"mlflow.source.git.commit": commit}


def portable_path(path: Path, folder: Path) -> str:
    """Return a path relative to the run's folder (`run:...`) or to this package (`package:...`).

    Event logs contain such paths, so that the folder of a run can be moved.

    Raises:
        ValueError: the file is neither in the run's folder nor in this package.
    """
    for name, root in (("run", folder), ("package", PACKAGE)):
        if path.resolve().is_relative_to(root.resolve()):
            # Logs from Windows contain forward slashes too, so they can be sent on other systems.
            return f"{name}:{path.resolve().relative_to(root.resolve()).as_posix()}"
    raise ValueError(f"{path} is not in the run's folder {folder}")


def resolve_path(text: str, folder: Path) -> Path:
    """Convert a string from `portable_path` to an absolute path.

    Raises:
        ValueError: the path leads out of the run's folder or out of this package. The log of a
            stranger could contain such a path.
    """
    name, _, inner = text.partition(":")
    # A text without a known prefix is a path inside the run's folder.
    root = {"run": folder, "package": PACKAGE}.get(name, folder).resolve()
    path = root / (inner or text)
    # A symlink in a downloaded folder could send any file of the user to the store. The path itself
    # comes first, so that no folder elsewhere is searched for symlinks.
    links = (one for one in path.rglob("*") if one.is_symlink())
    # Unlike `Path.resolve`, `realpath` accepts a symlink to itself.
    targets = (Path(os.path.realpath(one)) for one in itertools.chain([path], links))
    if not all(target.is_relative_to(root) for target in targets):
        raise ValueError(f"'{text}' is outside the run's folder")
    return path.resolve()


def sync_command(folder: Path) -> str:
    """Return the command that sends the runs in a folder to MLflow."""
    return f"kinopoisk-ft sync {shlex.quote(str(folder))}"


def find_recorded(
    folder: Path, wanted: dict[str, str], only_unsent: bool = False
) -> dict[str, str] | None:
    """Return the tags of the newest finished run in the event logs of a folder, or None.

    Args:
        folder: the folder to search, with its subfolders.
        wanted: tags that the run must have.
        only_unsent: whether to leave out runs of which a store has all events.
    """
    for one in reversed(find_logs(folder, below=True)):
        is_candidate = one.state.seq < one.seq or not only_unsent
        if is_candidate and one.status == "FINISHED" and wanted.items() <= one.tags.items():
            return one.tags
    return None


def close_killed(tracker: Tracker, folder: Path, resumed: str | None) -> None:
    """Give the status KILLED to runs whose processes died.

    Args:
        tracker: a tracker that has not started a run. Do not record metrics with it afterwards,
            because it skips each metric whose name and step a killed run already has.
        folder: the folder of the runs.
        resumed: the id of a run to skip, because that run will be resumed; or None.
    """
    for one in find_logs(folder):
        if one.status is None and resumed not in one.ids:
            # The log already contains the name, the params and the tags of the run.
            tracker.start(one.id, {}, {}, resume=one.local_id, folder=folder)
            tracker.finish("KILLED", one.last_time)


def _find_log(folder: Path, run_id: str) -> EventLog | None:
    return next((one for one in find_logs(folder) if run_id in one.ids), None)


def _new_log(folder: Path, wanted: str | None) -> EventLog:
    if wanted and LOCAL_ID.fullmatch(wanted):
        same = EventLog(folder / FOLDER / f"{wanted.removeprefix(OFFLINE)}.jsonl")
        # A damaged log with this id stays as it is.
        if not same.events:
            return same
    if wanted:
        log.warning("%s has no event log of run %s, so a new run is created", folder, wanted)
    return EventLog.new(folder)


def _warn_if_replaced(current: EventLog) -> None:
    # All runs in a folder write files with the same names, such as config.yaml.
    for other in find_logs(current.folder):
        unsent = (event["verb"] for event in other.after(other.state.seq))
        if other.id != current.id and "artifact" in unsent:
            text = "this run overwrites files of run '%s', which is not sent yet; to send it: %s"
            log.warning(text, other.events[0]["name"], sync_command(current.folder))
