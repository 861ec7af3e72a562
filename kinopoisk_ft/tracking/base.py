"""What a run tells a tracker, and the tracker that keeps nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol


class Tracker(Protocol):
    """The verbs that a run calls; a new tracker has these and a file in conf/tracking."""

    def find(self, tags: dict[str, str]) -> dict[str, str] | None:
        """Return all tags of the newest finished run that has these ones, None without any."""
        ...

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
        """Open a run with its flattened config and tags; returns its id.

        Args:
            parent: the id of the sweep's run that this one is a child of.
            kept: the id of an unfinished run to go on with: what it has is not recorded twice.
            folder: the run's own; what is recorded may wait there.
        """
        ...

    def metrics(self, values: dict[str, float], step: int) -> None:
        """Record values at an optimizer step."""
        ...

    def flush(self) -> None:
        """Force what was recorded to disk: a checkpoint is about to rely on it."""
        ...

    def tags(self, values: dict[str, str]) -> None:
        """Add tags that were not known at the start."""
        ...

    def artifact(self, path: Path) -> None:
        """Keep a file of the run's folder, or a folder in it with all it holds."""
        ...

    def model(self, folder: Path, code: Path, class_names: tuple[str, ...]) -> None:
        """Keep a model folder with the code file that serves it."""
        ...

    def finish(self, status: str) -> None:
        """Close the run as FINISHED, FAILED or KILLED."""
        ...


class NoTracker:
    """Keeps nothing: the run's folder has the result."""

    def __init__(self, *, uri: None, experiment: str) -> None:
        self.uri, self.experiment = uri, experiment

    def find(self, tags: dict[str, str]) -> None:
        """Return None: nothing is known of earlier runs."""

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
        """Return an empty id."""
        return ""

    def metrics(self, values: dict[str, float], step: int) -> None:
        """Drop the values."""

    def flush(self) -> None:
        """Nothing to write."""

    def tags(self, values: dict[str, str]) -> None:
        """Drop the tags."""

    def artifact(self, path: Path) -> None:
        """Leave the file where it is."""

    def model(self, folder: Path, code: Path, class_names: tuple[str, ...]) -> None:
        """Leave the folder where it is."""

    def finish(self, status: str) -> None:
        """Nothing to close."""
