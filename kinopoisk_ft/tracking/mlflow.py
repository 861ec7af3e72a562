"""MLflow as a tracker: metrics in batches, long values as artifacts, one store for all folders."""

from __future__ import annotations

import json
import logging
import time
import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import mlflow
from filelock import FileLock
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.tracking import MlflowClient
from mlflow.types.schema import ColSpec, Schema
from sqlalchemy.exc import SQLAlchemyError

from kinopoisk_ft.errors import UserError
from kinopoisk_ft.tracking.base import flatten
from kinopoisk_ft.tracking.store import FIX_MISSING, check_database, default_uri

log = logging.getLogger(__name__)

LONGEST_PARAM = 500  # letters; longer values are kept whole in long_params.json
BUFFER = 500  # metrics; one write of many costs little more than a write of one


def open_experiment(
    uri: str | None, experiment: str, artifacts: str | None
) -> tuple[MlflowClient, str]:
    """Return a client and the experiment's id, made if new; raises UserError if the store is shut.

    A relative sqlite path is taken from the working folder. Artifacts of a new experiment in an
    sqlite store go to `mlartifacts` beside it. Its schema is made under a lock: of two processes
    that make it at once, one would fail.
    """
    uri, file, location = uri or default_uri(), None, artifacts
    if uri.startswith("sqlite:///"):
        file = Path(uri.removeprefix("sqlite:///")).absolute()
        uri, location = f"sqlite:///{file}", artifacts or (file.parent / "mlartifacts").as_uri()
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)
    try:
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{file}.lock") if file is not None else nullcontext():
            if file is not None and file.exists() and file.stat().st_size:
                _check_schema(uri)
            client = MlflowClient(tracking_uri=uri)
            found = client.get_experiment_by_name(experiment)
            if found is not None:
                return client, found.experiment_id
            return client, client.create_experiment(experiment, artifact_location=location)
    except (MlflowException, SQLAlchemyError, OSError, ValueError) as error:
        raise UserError(
            f"the MLflow store cannot be opened: {str(error).splitlines()[0]}",
            where=f"tracking.uri={uri}",
            fix="check the path and its rights, or use tracking=none",
        ) from error


def _check_schema(uri: str) -> None:
    """Raise UserError where a file is no MLflow store, or that of another MLflow version."""
    try:
        check_database(uri)
    except UserError as error:
        another = "give tracking.uri=sqlite:////another/folder/mlflow.db"
        fix = error.fix if error.fix not in (None, FIX_MISSING) else another
        raise UserError(error.what, where=f"tracking.uri={uri}", fix=fix) from error


class MlflowTracker:
    """Implements the tracker's verbs; values are buffered and written in batches."""

    def __init__(
        self, *, uri: str | None, artifacts: str | None, experiment: str, log_model: bool
    ) -> None:
        self.uri, self.artifacts, self.experiment = uri, artifacts, experiment
        self.log_model = log_model
        self._buffer: list[Metric] = []
        self._recorded: set[tuple[str, int]] = set()

    def find(self, tags: dict[str, str]) -> dict[str, str] | None:
        """Return all tags of the newest finished run of the experiment that has these ones."""
        client, experiment_id = open_experiment(self.uri, self.experiment, self.artifacts)
        terms = [f"tags.`{key}` = '{value}'" for key, value in tags.items()]
        found = client.search_runs(
            [experiment_id],
            " and ".join(["attributes.status = 'FINISHED'", *terms]),
            order_by=["attributes.start_time DESC"],
            max_results=1,
        )
        return dict(found[0].data.tags) if found else None

    def start(
        self,
        name: str,
        config: dict[str, Any],
        tags: dict[str, str],
        parent: str | None = None,
        kept: str | None = None,
    ) -> str:
        """Open a run, as a child of `parent`, or go on with one.

        Raises:
            UserError: the store does not have the parent.
        """
        self._client, self._experiment_id = open_experiment(
            self.uri, self.experiment, self.artifacts
        )
        if parent is not None:
            self._check_parent(parent)
            tags = {**tags, "mlflow.parentRunId": parent}
        params = flatten(config)
        if not kept or not self._reopen(kept, params):
            run = self._client.create_run(self._experiment_id, tags=tags, run_name=name)
            self.run_id: str = run.info.run_id
        self._params(params)
        return self.run_id

    def _reopen(self, kept: str, params: dict[str, Any]) -> bool:
        """Go on with a run, and take from the params those that it has; False if it is gone."""
        try:
            run = self._client.get_run(kept)
        except MlflowException as error:
            log.warning("a new run is opened: the store has lost %s: %s", kept, error.message)
            return False
        for key in run.data.params:
            params.pop(key, None)
        for key in run.data.metrics:
            history = self._client.get_metric_history(kept, key)
            self._recorded |= {(key, metric.step) for metric in history}
        if "error" in run.data.tags:
            self._client.delete_tag(kept, "error")
        self._client.update_run(kept, status="RUNNING")
        self.run_id = kept
        return True

    def _check_parent(self, parent: str) -> None:
        try:
            self._client.get_run(parent)
        except MlflowException as error:
            raise UserError(
                f"the sweep's parent run {parent} is not in the job's store",
                where=f"tracking.uri={self.uri or default_uri()}",
                fix="keep one tracking.uri for all jobs of a sweep",
            ) from error

    def metrics(self, values: dict[str, float], step: int) -> None:
        """Buffer values; they are written when there are many, and at the end.

        What the store has of this step from before a stop is not written again.
        """
        now = int(time.time() * 1000)
        self._buffer += [
            Metric(key, float(value), now, step)
            for key, value in values.items()
            if (key, step) not in self._recorded
        ]
        if len(self._buffer) >= BUFFER:
            self.flush()

    def flush(self) -> None:
        """Write what is buffered."""
        buffered, self._buffer = self._buffer, []
        if buffered:
            self._client.log_batch(self.run_id, metrics=buffered)

    def tags(self, values: dict[str, str]) -> None:
        """Add tags."""
        tags = [RunTag(key, value) for key, value in values.items()]
        self._client.log_batch(self.run_id, tags=tags)

    def artifact(self, path: Path) -> None:
        """Keep a file, or a folder under its own name."""
        if path.is_dir():
            self._client.log_artifacts(self.run_id, str(path), artifact_path=path.name)
        else:
            self._client.log_artifact(self.run_id, str(path))

    def model(self, folder: Path, code: Path, class_names: tuple[str, ...]) -> None:
        """Keep the folder as an MLflow model: a pyfunc made from code, nothing pickled."""
        if not self.log_model:
            return
        outputs = [ColSpec("string", "label")]
        outputs += [ColSpec("double", f"p_{name}") for name in class_names]
        mlflow.set_tracking_uri(self._client.tracking_uri)
        with warnings.catch_warnings(), mlflow.start_run(run_id=self.run_id):
            # It advises type hints, which would refuse a frame, and an example input.
            warnings.simplefilter("ignore", UserWarning)
            mlflow.pyfunc.log_model(
                name="model",
                python_model=str(code),
                artifacts={"model_folder": str(folder)},
                signature=ModelSignature(
                    inputs=Schema([ColSpec("string", "text")]), outputs=Schema(outputs)
                ),
                pip_requirements=["kinopoisk-ft"],
            )

    def finish(self, status: str) -> None:
        """Write what is buffered and close the run."""
        self.flush()
        self._client.set_terminated(self.run_id, status)

    def _params(self, params: dict[str, Any]) -> None:
        texts = {key: str(value) for key, value in params.items()}
        long = {key: text for key, text in texts.items() if len(text) > LONGEST_PARAM}
        for key in long:
            texts[key] = "in long_params.json"
        entries = [Param(key, text) for key, text in texts.items()]
        for start in range(0, len(entries), 100):
            self._client.log_batch(self.run_id, params=entries[start : start + 100])
        if long:
            text = json.dumps(long, ensure_ascii=False, indent=2)
            self._client.log_text(self.run_id, text, "long_params.json")
