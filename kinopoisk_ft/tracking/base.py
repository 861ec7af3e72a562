"""Define what a run records with a tracker, and the tracker that records nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol


class Tracker(Protocol):
    """The methods that a run calls; a new tracker has these and a file in conf/tracking."""

    def find(self, tags: dict[str, str]) -> dict[str, str] | None:
        """Return all tags of the newest finished run that has these tags; None if there is none."""
        ...

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
        """Start a run and return its id.

        Args:
            config: recorded as params with dotted names.
            parent: the id of the sweep's parent run.
            resume: the id of an unfinished run to continue; nothing is recorded twice.
            folder: the run's own folder; events wait there until they are sent.
        """
        ...

    def metrics(self, values: dict[str, float], step: int) -> None:
        """Record values at an optimizer step."""
        ...

    def flush(self) -> None:
        """Force everything recorded to disk before a checkpoint relies on it."""
        ...

    def tags(self, values: dict[str, str]) -> None:
        """Add tags that were not known at the start."""
        ...

    def artifact(self, path: Path) -> None:
        """Record a file of the run's folder, or a folder in it with its contents."""
        ...

    def model(self, folder: Path, code: Path, class_names: tuple[str, ...]) -> None:
        """Record a model folder with the code file that serves it."""
        ...

    def finish(self, status: str) -> None:
        """End the run as FINISHED, FAILED or KILLED."""
        ...


class NoTracker:
    """Record nothing; the run's folder still has the result."""

    def __init__(self, *, uri: None, experiment: str) -> None:
        self.uri, self.experiment = uri, experiment

    def find(self, tags: dict[str, str]) -> None:
        """Return None: no earlier run is known."""

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
        """Return an empty id."""
        return ""

    def metrics(self, values: dict[str, float], step: int) -> None:
        """Drop the values."""

    def flush(self) -> None:
        """Write nothing."""

    def tags(self, values: dict[str, str]) -> None:
        """Drop the tags."""

    def artifact(self, path: Path) -> None:
        """Leave the file where it is."""

    def model(self, folder: Path, code: Path, class_names: tuple[str, ...]) -> None:
        """Leave the folder where it is."""

    def finish(self, status: str) -> None:
        """End nothing."""
