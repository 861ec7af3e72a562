"""How far a run's events have come: which store has them, up to which one."""

from __future__ import annotations

import json
import logging
import os
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from kinopoisk_ft.tracking.events import EventLog

log = logging.getLogger(__name__)


@dataclass
class Sent:
    """What `<id>.sent.json` beside the events holds; the store itself is asked where it may lag.

    Args:
        seq: the store has all events up to this one.
        refused: events that the store, or a lost file, has made impossible to send, with the cause.
    """

    uri: str = ""
    run_id: str = ""
    seq: int = 0
    refused: dict[str, str] = field(default_factory=dict)

    def save(self, file: Path) -> None:
        """Write beside, then rename; a disk that takes nothing costs a look into the store."""
        part = file.with_suffix(".part")
        try:
            part.write_text(json.dumps(asdict(self), ensure_ascii=False), encoding="utf-8")
            os.replace(part, file)
        except OSError as error:
            log.debug("%s is not up to date: %s", file, error)


def sent_file(events: EventLog) -> Path:
    """Return where a log's state is kept."""
    return events.file.with_suffix(".sent.json")


def read_sent(events: EventLog) -> Sent:
    """Return the state of a log; of one that was never sent, or is damaged, an empty one."""
    try:
        found = Sent(**json.loads(sent_file(events).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, RecursionError):
        return Sent()
    kinds = {field.name: type(getattr(Sent(), field.name)) for field in fields(Sent)}
    right = all(isinstance(getattr(found, name), kind) for name, kind in kinds.items())
    right = right and all(isinstance(cause, str) for cause in found.refused.values())
    return found if right else Sent()


def finished(events: EventLog) -> bool:
    """Return whether the last that the run told of its state was its end."""
    verbs = [e["verb"] for e in events.all() if e["verb"] in ("start", "reopen", "finish")]
    return bool(verbs) and verbs[-1] == "finish"
