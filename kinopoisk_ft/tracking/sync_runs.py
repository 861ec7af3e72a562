"""Send recorded runs to an MLflow store."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kinopoisk_ft.errors import UserError, first_line
from kinopoisk_ft.text import hide_password
from kinopoisk_ft.tracking.delivery import Delivery
from kinopoisk_ft.tracking.event_log import OFFLINE, Event, EventLog, find_logs
from kinopoisk_ft.tracking.offline import PARENT_TAG
from kinopoisk_ft.tracking.replay import Replay, Target
from kinopoisk_ft.tracking.store import SQLITE, get_database_file
from kinopoisk_ft.tracking.store_schema import DATABASES, REMOTE
from kinopoisk_ft.tracking.sweep import SAME_AS

# URI schemes of stores that run on a server.
SERVED = {*REMOTE, *DATABASES} - {"sqlite"}

Status = Literal["sent", "already sent", "still running", "not sent"]


@dataclass(frozen=True)
class Synced:
    """The result of sending one run.

    Args:
        text: a message for the user.
        refused: the number of events that could not be sent.
    """

    status: Status
    text: str
    refused: int = 0


def sync_folders(
    folders: list[Path], uri: str | None, experiment: str | None, died_as: str
) -> Iterator[Synced]:
    """Send all runs in folders and their subfolders to MLflow.

    The parent run of a sweep is sent before its jobs.

    Args:
        uri: the URI of the store. If None, each run is sent to the store that its event log names.
            If the log names no store, or if it names an SQLite file that does not exist, the run is
            sent to the default store.
        experiment: the name of the experiment. If None, each run is sent to the experiment that its
            event log names.
        died_as: the status for runs whose process died.

    Yields:
        The result for each run. If `uri` is None and the store of a run cannot be used, the status
        of this run is "not sent", and the other runs are still sent.

    Raises:
        UserError: no run was found, or the store at `uri` cannot be used.
    """
    # The folders may overlap, but each log is sent only once.
    logs = {log.file.resolve(): log for folder in folders for log in find_logs(folder, below=True)}
    if not logs:
        raise UserError(
            "there is no recorded run in these folders",
            where=", ".join(map(str, folders)),
            fix="pass the output_dir of a run or of a sweep, or a folder that contains it",
        )
    oldest_first = sorted(logs.values(), key=lambda log: log.events[0]["time"])
    # If a folder has several runs, the last one with artifacts has overwritten the others' files.
    owners = {log.folder: log for log in oldest_first
              if any(event["verb"] == "artifact" for event in log.events)}  # fmt: skip
    for log in sorted(oldest_first, key=_count_offline_references):
        start, has_files = log.events[0], owners.get(log.folder, log) is log
        name = f"{start['name']} ({log.folder})"
        try:
            yield _sync(log, name, _get_target(start, uri, experiment), has_files, died_as)
        except UserError as error:
            # All runs go to this store, so the others would fail for the same reason.
            if uri is not None:
                raise
            yield Synced("not sent", f"{name}: {error}")


def _count_offline_references(log: EventLog) -> int:
    tags = log.tags
    # Runs to which these tags refer by a local id must be sent first.
    return sum(tags.get(key, "").startswith(OFFLINE) for key in (PARENT_TAG, SAME_AS))


def _get_target(start: Event, uri: str | None, experiment: str | None) -> Target:
    own, is_from_here = start.get("uri"), start.get("host") == socket.gethostname()
    # The part before "+" is the scheme: `postgresql+psycopg://user@host/database`.
    if uri is None and own and own.partition(":")[0].partition("+")[0] in SERVED:
        # MLflow would send the user's password to the server, which a stranger may have chosen.
        if not is_from_here and own != os.environ.get("MLFLOW_TRACKING_URI"):
            raise UserError(
                f"the run comes from another machine and names the store {hide_password(own)}; "
                "somebody else may have chosen this store, so confirm it with --uri",
                fix="pass --uri <uri> with this store, or with another one that you trust",
            )
        uri = own
    # The database may be on another machine, where the run took place.
    elif uri is None and own and own.startswith(SQLITE):
        uri = own if get_database_file(own).is_file() else None
    # An artifact location is valid only for the store and the machine for which it was chosen.
    artifacts = start.get("artifacts") if uri == own and is_from_here else None
    return Target(uri, experiment or start["experiment"], artifacts)


def _sync(log: EventLog, name: str, target: Target, has_files: bool, died_as: str) -> Synced:
    try:
        # Without a lock, a run in progress looks like a run whose process died.
        log.open(needs_lock=log.status is None)
    except UserError:
        return Synced("still running", f"{name}: skipped, it is still running or being sent")
    except OSError as error:
        return Synced(
            "not sent",
            f"{name}: it may still be running, because its folder cannot be locked: {error}\n"
            "  to do: wait for its end. If its process died, repeat its command, or copy the "
            "folder to a local disk where you may write, and send the copy",
        )
    try:
        # This process has the lock, so a log without an end belongs to a process that died.
        died = log.status is None
        if died:
            log.append("finish", status=died_as, time=log.last_time)
        before = (log.state.uri, log.state.seq)
        replay = Replay(log, target, has_files)
        _send(replay)
    finally:
        log.close()
    is_unchanged = before == (replay.uri, log.seq) and not replay.counts
    sent = ", ".join(f"{what} {count}" for what, count in sorted(replay.counts.items()))
    lines = [
        f"{name}: {sent or 'nothing was left to send'}",
        f"  run {replay.run_id} in {hide_password(replay.uri)}, {log.status}"
        + ("; its process died" if died else ""),
        *(f"  not sent: {reason}" for reason in log.state.refused.values()),
    ]
    status: Status = "already sent" if is_unchanged else "sent"
    return Synced(status, "\n".join(lines), len(log.state.refused))


def _send(replay: Replay) -> None:
    delivery = Delivery(replay)
    delivery.send_rest()
    if isinstance(delivery.error, UserError):
        raise delivery.error
    if delivery.error is not None:
        raise UserError(
            f"some records could not be sent to the store: {first_line(delivery.error)[:300]}",
            where=hide_password(replay.uri),
            fix="run the same command again later; it sends only the missing records",
        ) from delivery.error
