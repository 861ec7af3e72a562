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
from kinopoisk_ft.tracking.event_log import (
    OFFLINE,
    Event,
    EventLog,
    find_logs,
    read_end,
    read_tags,
)
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
    logs = {events.file.resolve(): events for folder in folders for events in find_logs(folder)}
    if not logs:
        raise UserError(
            "there is no recorded run",
            where=", ".join(map(str, folders)),
            fix="give the output_dir of a run or of a sweep, or a folder above it",
        )
    starts = {file: next(events.events()) for file, events in logs.items()}
    # Of several runs in a folder, the last one with artifacts has replaced the files of the others.
    owners = {file.parent: file for file in sorted(logs, key=lambda file: starts[file]["time"])
              if any(e["verb"] == "artifact" for e in logs[file].events())}  # fmt: skip
    for file in sorted(logs, key=lambda file: _order(logs[file], starts[file])):
        events, name = logs[file], f"{starts[file]['name']} ({logs[file].folder})"
        has_files = owners.get(file.parent, file) == file
        try:
            target = _get_target(starts[file], uri, experiment)
            yield _sync(events, name, target, has_files, died_as)
        except UserError as error:
            if uri is not None:
                raise
            yield Synced("not sent", f"{name}: {error}")


def _order(events: EventLog, start: Event) -> tuple[int, int]:
    """Return a sort key that puts a run after the runs that its tags name."""
    tags = read_tags(events)
    named = (tags.get(key, "") for key in (PARENT_TAG, SAME_AS))
    return sum(run_id.startswith(OFFLINE) for run_id in named), start["time"]


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


def _sync(events: EventLog, name: str, target: Target, has_files: bool, died_as: str) -> Synced:
    try:
        events.open()
    except UserError:
        return Synced("still running", f"{name}: still running or being sent: skipped")
    try:
        died = read_end(events) is None
        # `open` holds the lock, so no process is writing this log.
        if died:
            last = max(event["time"] for event in events.events())
            events.append("finish", status=died_as, time=last)
        replay = Replay(events, target, has_files)
        before = (replay.state.uri, replay.state.seq)
        replay.retry_refused()
        _send(replay)
    finally:
        events.close()
    state = replay.state
    is_unchanged = before == (replay.uri, events.seq) and not replay.counts
    sent = ", ".join(f"{what} {count}" for what, count in sorted(replay.counts.items()))
    lines = [
        f"{name}: {sent or 'nothing was left to send'}",
        f"  run {state.run_id} in {hide_password(replay.uri)}, {read_end(events) or died_as}"
        + ("; its process died" if died else ""),
        *(f"  not sent: {reason}" for reason in state.refused.values()),
    ]
    status: Status = "already sent" if is_unchanged else "sent"
    return Synced(status, "\n".join(lines), len(state.refused))


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
