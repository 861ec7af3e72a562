"""What an event of a log has to say: the log may be damaged, or come from somebody else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_whole(value: Any) -> bool:
    return type(value) is int


def _is_count(value: Any) -> bool:
    """Whether it is a whole number that a store can hold."""
    return _is_whole(value) and -(2**63) <= value < 2**63


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_address(value: Any) -> bool:
    return value is None or _is_text(value)


def _has_texts(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_is_text, value.values()))


def _has_numbers(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_is_number, value.values()))


def _lists_texts(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_text, value))


ALWAYS: dict[str, Callable[[Any], bool]] = {"seq": _is_whole, "time": _is_count, "verb": _is_text}
# Whoever sends the events refuses other verbs, so that a later version may have more.
FIELDS: dict[str, dict[str, Callable[[Any], bool]]] = {
    "start": {"name": _is_text, "tags": _has_texts, "experiment": _is_text},
    "reopen": {},
    "params": {"values": _has_texts},
    "metrics": {"values": _has_numbers, "step": _is_count},
    "tags": {"values": _has_texts},
    "artifact": {"path": _is_text},
    "model": {"path": _is_text, "code": _is_text, "class_names": _lists_texts},
    "finish": {"status": _is_text},
}
# What is looked at whatever the verb, and may be missing.
OPTIONAL: dict[str, Callable[[Any], bool]] = {
    "uri": _is_address, "artifacts": _is_address, "host": _is_address, "path": _is_text,
    "tags": _has_texts, "status": _is_text, "values": lambda value: isinstance(value, dict),
}  # fmt: skip


def fault(event: Any) -> str | None:
    """Return what is wrong with what should be an event, None if it is one."""
    if not isinstance(event, dict):
        return "it is no JSON object"
    verb = event.get("verb")
    wanted = ALWAYS | (FIELDS.get(verb, {}) if isinstance(verb, str) else {})
    for name, fits in wanted.items():
        if name not in event:
            return f"it has no '{name}'"
        if not fits(event[name]):
            return f"its '{name}' is of the wrong kind"
    wrong = (name for name, fits in OPTIONAL.items() if name in event and not fits(event[name]))
    return next((f"its '{name}' is of the wrong kind" for name in wrong), None)
