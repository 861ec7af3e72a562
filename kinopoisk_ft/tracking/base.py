"""Define the methods of trackers, which record runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any


class Tracker:
    """A tracker that records nothing; the base class of trackers that record runs.

    Each tracker class needs a config file in conf/tracking.
    """

    def __init__(self, *, uri: None, experiment: str) -> None:
        """Ignore the options, which only other trackers use."""

    def find(self, tags: dict[str, str], folder: Path) -> dict[str, str] | None:
        """Return all tags of the newest finished run with the given tags, or None.

        Args:
            folder: the folder whose event logs are searched if there is no store.
        """
        return None

    def get_uri(self) -> str | None:
        """Return the URI of the MLflow store to which runs are sent; None if there is none."""
        return None

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
            resume: the id of an unfinished run to resume; values already recorded are skipped. If
                it is a local id without a run, the new run gets this id.
            folder: the output folder of the run.
        """
        # `ParentRun` stores an empty id as None, which means that the jobs are not tracked.
        return ""

    def metrics(self, values: dict[str, float], step: int) -> None:
        """Record metric values at an optimizer step."""

    def flush(self) -> None:
        """Sync all recorded values to disk before a checkpoint is saved."""

    def tags(self, values: dict[str, str]) -> None:
        """Set tags of the run."""

    def artifact(self, path: Path) -> None:
        """Record a file or subfolder of the run's folder."""

    def dataset(self, context: str, values: dict[str, str]) -> None:
        """Record a part of the data that the run uses.

        Args:
            context: "train", "validation" or "test".
            values: the fields digest, source_type, source, schema and profile of an MLflow data
                set. The last three are JSON.
        """

    def model(self, folder: Path, code: Path, class_names: tuple[str, ...]) -> None:
        """Record a model folder, and the Python file that serves the model."""

    def finish(self, status: str, time: int | None = None) -> None:
        """End the run with the status FINISHED, FAILED or KILLED.

        Args:
            time: when the run has ended, in ms since 1970; None means now.
        """
