"""Define the `Tracker` protocol, and a tracker that records nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol


class Tracker(Protocol):
    """Define the methods of a tracker, which also needs a config file in conf/tracking."""

    def find(self, tags: dict[str, str]) -> dict[str, str] | None:
        """Return all tags of the newest finished run with the given tags; None if there is none."""
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
            config: a nested dict, which is recorded as params with dotted names (`trainer.lr`).
            parent: the id of the sweep's parent run.
            resume: the id of an unfinished run to resume. Values already recorded are skipped.
            folder: the output folder of the run, for files that the tracker needs.
        """
        ...

    def metrics(self, values: dict[str, float], step: int) -> None:
        """Record metric values at an optimizer step."""
        ...

    def flush(self) -> None:
        """Call fsync on everything recorded so far, because a new checkpoint relies on it."""
        ...

    def tags(self, values: dict[str, str]) -> None:
        """Set tags that were not known at the start of the run."""
        ...

    def artifact(self, path: Path) -> None:
        """Record a file in the run's folder, or a subfolder with its contents."""
        ...

    def model(self, folder: Path, code: Path, class_names: tuple[str, ...]) -> None:
        """Record a model folder, and the Python file with the class that serves the model."""
        ...

    def finish(self, status: str) -> None:
        """End the run with the status FINISHED, FAILED or KILLED."""
        ...


class NoTracker:
    """Record nothing; the result is still written to the run's folder."""

    def __init__(self, *, uri: None, experiment: str) -> None:
        self.uri, self.experiment = uri, experiment

    def find(self, tags: dict[str, str]) -> None:
        """Return None, because earlier runs were not recorded."""

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
        """Return an empty string as the run id."""
        return ""

    def metrics(self, values: dict[str, float], step: int) -> None:
        """Ignore the values."""

    def flush(self) -> None:
        """Do nothing."""

    def tags(self, values: dict[str, str]) -> None:
        """Ignore the tags."""

    def artifact(self, path: Path) -> None:
        """Do nothing: the file stays in the run's folder."""

    def model(self, folder: Path, code: Path, class_names: tuple[str, ...]) -> None:
        """Do nothing: the model stays in the run's folder."""

    def finish(self, status: str) -> None:
        """Ignore the status."""
