"""Send the runs recorded in folders to an MLflow store."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kinopoisk_ft.errors import UserError
from kinopoisk_ft.tracking.delivery import Delivery
from kinopoisk_ft.tracking.event_log import OFFLINE, Event, EventLog, find_logs
from kinopoisk_ft.tracking.offline import PARENT_TAG
from kinopoisk_ft.tracking.replay import Replay, Target
from kinopoisk_ft.tracking.store import DATABASES, REMOTE, hide_password
from kinopoisk_ft.tracking.sweep import SAME_AS

# Stores with these schemes run on a server.
SERVED = {*REMOTE, *DATABASES} - {"sqlite"}

Status = Literal["sent", "already sent", "still running", "not sent"]


@dataclass(frozen=True)
class Synced:
    """What happened to one log.

    Args:
        text: what was sent, where to, and why something was not.
        refused: how many events could not be sent.
    """

    status: Status
    text: str
    refused: int = 0


def sync_folders(
    folders: list[Path], uri: str | None, experiment: str | None, died_as: str
) -> Iterator[Synced]:
    """Send the runs in folders and below, the parent of a sweep before its jobs.

    Args:
        uri, experiment: where to send all runs; None sends each run where it was meant to go.
        died_as: the status of a run without an end that no process is writing.

    Yields:
        What happened to each run. If a run's own store cannot be opened, it is "not sent" and the
        other runs are still sent.

    Raises:
        UserError: there is no run, or the store at `uri` cannot be opened or does not answer.
    """
    # The folders may overlap: each log is sent once.
    logs = {log.file.resolve(): log for folder in folders for log in find_logs(folder, below=True)}
    if not logs:
        raise UserError(
            "there is no recorded run",
            where=", ".join(map(str, folders)),
            fix="give the output_dir of a run or of a sweep, or a folder above it",
        )
    oldest_first = sorted(logs.values(), key=lambda log: log.events[0]["time"])
    # Of several runs in a folder, the last one with artifacts has replaced the files of the others.
    owners = {log.folder: log for log in oldest_first
              if any(event["verb"] == "artifact" for event in log.events)}  # fmt: skip
    for log in sorted(oldest_first, key=_count_offline_references):
        start, has_files = log.events[0], owners.get(log.folder, log) is log
        name = f"{start['name']} ({log.folder})"
        try:
            yield _sync(log, name, _get_target(start, uri, experiment), has_files, died_as)
        except UserError as error:
            if uri is not None:
                raise
            yield Synced("not sent", f"{name}: {error}")


def _count_offline_references(log: EventLog) -> int:
    """Return how many runs must be sent before this one, because its tags name them."""
    tags = log.tags
    return sum(tags.get(key, "").startswith(OFFLINE) for key in (PARENT_TAG, SAME_AS))


def _get_target(start: Event, uri: str | None, experiment: str | None) -> Target:
    """Return where to send a run: `uri`, else its own store if that can be reached."""
    own, is_from_here = start.get("uri"), start.get("host") == socket.gethostname()
    # `postgresql+psycopg://user@host/database` has the scheme `postgresql`.
    if uri is None and own and own.partition(":")[0].partition("+")[0] in SERVED:
        # MLflow would send the user's password to a server that is named in a downloaded folder.
        if not is_from_here and own != os.environ.get("MLFLOW_TRACKING_URI"):
            raise UserError(
                f"the run was recorded on another machine for the store {hide_password(own)}",
                fix="name the store yourself: --uri",
            )
        uri = own
    elif uri is None and own and own.startswith("sqlite:///"):
        uri = own if Path(own.removeprefix("sqlite:///")).is_file() else None
    artifacts = start.get("artifacts") if uri == own and is_from_here else None
    return Target(uri, experiment or start["experiment"], artifacts)


def _sync(log: EventLog, name: str, target: Target, has_files: bool, died_as: str) -> Synced:
    try:
        log.open()
    except UserError:
        return Synced("still running", f"{name}: still running or being sent: skipped")
    try:
        # The log is locked, so no process is writing it.
        died = log.status is None
        if died:
            last = max(event["time"] for event in log.events)
            log.append("finish", status=died_as, time=last)
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
        reason = next(iter(str(delivery.error).splitlines()), type(delivery.error).__name__)
        raise UserError(
            f"the store has not accepted the rest: {reason[:300]}",
            where=hide_password(replay.uri),
            fix="run the same command again later: nothing is sent twice",
        ) from delivery.error
