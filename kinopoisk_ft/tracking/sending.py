"""Send the runs that lie in folders to an MLflow store."""

from __future__ import annotations

import os
import socket
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from mlflow.exceptions import MlflowException

from kinopoisk_ft.errors import UserError
from kinopoisk_ft.tracking.delivery import Delivery, Target
from kinopoisk_ft.tracking.events import OFFLINE, Event, EventLog, event_logs
from kinopoisk_ft.tracking.offline import PARENT_TAG, tags_of
from kinopoisk_ft.tracking.sent import finished, read_sent
from kinopoisk_ft.tracking.store import DATABASES, REMOTE, shown
from kinopoisk_ft.tracking.sweep import SAME_AS

SERVED = {*REMOTE, *DATABASES} - {"sqlite"}  # stores that are elsewhere, or may be
PAUSES = (1.0, 2.0, 4.0)  # seconds between attempts at a store that gives no answer

Fate = Literal["sent", "was sent", "goes on", "not sent"]


@dataclass
class Shipment:
    """What became of one log."""

    name: str
    folder: Path
    fate: Fate
    run_id: str = ""
    uri: str = ""
    status: str = ""
    died: bool = False
    counts: Counter[str] = field(default_factory=Counter)
    refused: dict[str, str] = field(default_factory=dict)
    error: UserError | None = None

    def line(self) -> str:
        """Return what a user is told of it."""
        if self.fate == "goes on":
            return f"{self.name} ({self.folder}): goes on, or is being sent: left alone"
        sent = ", ".join(f"{what} {count}" for what, count in sorted(self.counts.items()))
        text = sent or "nothing was left to send"
        died = "; its process died" if self.died else ""
        run = f"run {self.run_id} in {shown(self.uri)}, {self.status}{died}"
        head = f"{self.name} ({self.folder}): {text}\n  {run}"
        return "\n".join([head, *(f"  not sent: {cause}" for cause in self.refused.values())])


def send_all(
    folders: list[Path], uri: str | None, experiment: str | None, died_as: str
) -> Iterator[Shipment]:
    """Send what lies in folders and below, a sweep's parent before its jobs.

    Args:
        uri, experiment: where to; None: where each run was to go.
        died_as: the status of a run that has told no end, though no process writes it any more.

    A run whose own store cannot be had is "not sent", and the others go on.

    Raises:
        UserError: there is no run, or the store that was asked for cannot be opened or gives no
            answer.
    """
    logs = {events.file.resolve(): events for folder in folders for events in event_logs(folder)}
    if not logs:
        raise UserError(
            "there is no recorded run",
            where=", ".join(map(str, folders)),
            fix="give the output_dir of a run or of a sweep, or a folder above",
        )
    starts = {file: next(events.all()) for file, events in logs.items()}
    owners = {file.parent: file for file in sorted(logs, key=lambda f: starts[f]["time"])
              if any(event["verb"] == "artifact" for event in logs[file].all())}  # fmt: skip
    for file in sorted(logs, key=lambda file: _order(logs[file])):
        files = owners.get(file.parent, file) == file
        try:
            target = _target(starts[file], uri, experiment)
            shipment = _send(logs[file], starts[file], target, files, died_as)
        except UserError as error:
            if uri is not None:
                raise
            shipment = Shipment(starts[file]["name"], file.parent, "not sent", error=error)
        yield shipment


def _order(events: EventLog) -> tuple[int, int]:
    """Return a key by which a run comes after those that its tags name."""
    tags, start = tags_of(events), next(events.all())
    named = (str(tags.get(key, "")) for key in (PARENT_TAG, SAME_AS))
    return sum(run_id.startswith(OFFLINE) for run_id in named), start["time"]


def _target(start: Event, uri: str | None, experiment: str | None) -> Target:
    """Return where a run goes: as asked for, else its own store if that is in reach."""
    own, of_here = start.get("uri"), start.get("host") == socket.gethostname()
    if uri is None and own and _scheme(own) in SERVED:
        # MLflow would show a server that a downloaded folder names the user's password.
        if not of_here and own != os.environ.get("MLFLOW_TRACKING_URI"):
            raise UserError(
                f"the run '{start['name']}' is of another machine and was to go to {shown(own)}",
                fix="say where it is to go: --uri",
            )
        uri = own
    elif uri is None and own and _is_here(own):
        uri = own
    artifacts = start.get("artifacts") if uri == own and of_here else None
    return Target(uri, experiment or start["experiment"], artifacts)


def _scheme(uri: str) -> str:
    """Return `postgresql` of `postgresql+psycopg://user@host/database`."""
    return uri.partition(":")[0].partition("+")[0]


def _is_here(uri: str) -> bool:
    return uri.startswith("sqlite:///") and Path(uri.removeprefix("sqlite:///")).is_file()


def _send(events: EventLog, start: Event, target: Target, files: bool, died_as: str) -> Shipment:
    shipment = Shipment(start["name"], events.folder, "goes on")
    try:
        events.open()
    except UserError:
        return shipment
    try:
        shipment.died = not finished(events)
        if shipment.died:
            events.append("finish", status=died_as, time=max(e["time"] for e in events.all()))
        delivery = Delivery(events, target, files)
        before = (delivery.sent.uri, delivery.sent.seq)
        delivery.retry()
        _deliver(delivery)
    finally:
        events.close()
    nothing = before == (delivery.uri, events.seq) and not delivery.counts
    shipment.fate = "was sent" if nothing else "sent"
    shipment.run_id, shipment.uri = delivery.sent.run_id, delivery.uri
    ends = [e.get("status", "unknown") for e in events.all() if e["verb"] == "finish"]
    shipment.status = ends[-1] if ends else died_as
    shipment.counts, shipment.refused = delivery.counts, read_sent(events).refused
    return shipment


def _deliver(delivery: Delivery) -> None:
    """Deliver all, with a few attempts at a store that gives no answer."""
    failures = 0
    while True:
        try:
            if not delivery.step():
                return
            failures = 0
        except UserError:
            raise
        except (MlflowException, OSError) as error:
            if failures == len(PAUSES):
                raise UserError(
                    f"the store has not taken the rest: {str(error).splitlines()[0][:300]}",
                    where=shown(delivery.uri),
                    fix="run the same command again when it answers: nothing is sent twice",
                ) from error
            time.sleep(PAUSES[failures])
            failures += 1
