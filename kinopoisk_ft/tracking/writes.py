"""Writes to one run of an MLflow store; each can be repeated and leaves what one would leave."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from importlib.metadata import version
from pathlib import Path

import mlflow
import pandas as pd
from mlflow.entities import LoggedModel, LoggedModelOutput, Metric, Param, RunTag
from mlflow.models import Model, ModelSignature
from mlflow.tracking import MlflowClient
from mlflow.types.schema import ColSpec, Schema

from kinopoisk_ft.tracking.events import Event
from kinopoisk_ft.tracking.places import PACKAGE, located

LONGEST_PARAM = 500  # letters; longer values are kept whole in long_params.json
MOST_PARAMS = MOST_TAGS = 100  # MLflow's limits of one request
MOST_METRICS = 1000
EXAMPLE = ["Фильм понравился, смотрели всей семьёй."]  # of what a model takes
# Distributions that the package imports when it answers.
SERVING = (
    "datasets", "huggingface-hub", "mlflow", "numba", "numpy", "pandas", "peft", "psutil",
    "pydantic", "safetensors", "scikit-learn", "tokenizers", "torch", "torchmetrics",
    "transformers",
)  # fmt: skip
LARGEST_TEXT = 2**20  # bytes of a JSON file in which the run's id is looked for


class RunWriter:
    """Writes events of one kind to a run.

    Args:
        folder: the run's own; artifacts lie there.
        local_id: what tags and JSON files call the run if it began without the store.
        doubtful: events up to this one may be in the store already.
    """

    def __init__(
        self, client: MlflowClient, run_id: str, folder: Path, local_id: str, doubtful: int
    ) -> None:
        self.client, self.run_id, self.folder = client, run_id, folder
        self.local_id, self._doubtful = local_id, doubtful
        self.counts: Counter[str] = Counter()
        self._there: dict[str, set[tuple[int, int]]] = {}

    def write(self, events: list[Event]) -> None:
        """Write events that have one verb in common."""
        if events[0]["verb"] == "metrics":
            self._metrics(events)
            return
        verbs = {
            "params": self._params, "tags": self._tags, "artifact": self._artifact,
            "model": self._model, "reopen": self._reopen, "finish": self._finish,
        }  # fmt: skip
        for event in events:
            verbs[event["verb"]](event)

    def doubt(self, seq: int) -> None:
        """Look up from now on whether the store has events up to this one."""
        self._doubtful = max(self._doubtful, seq)
        self._there.clear()

    def _metrics(self, events: list[Event]) -> None:
        """Write values but those that the store has: only a database drops a repeated one."""
        metrics = [
            Metric(key, float(value), event["time"], event["step"])
            for event in events
            for key, value in event["values"].items()
            if event["seq"] > self._doubtful
            or (event["step"], event["time"]) not in self._history(key)
        ]
        for start in range(0, len(metrics), MOST_METRICS):
            part = metrics[start : start + MOST_METRICS]
            self.client.log_batch(self.run_id, metrics=part)
            self.counts["metrics"] += len(part)

    def _history(self, key: str) -> set[tuple[int, int]]:
        if key not in self._there:
            found = self.client.get_metric_history(self.run_id, key)
            self._there[key] = {(metric.step, metric.timestamp) for metric in found}
        return self._there[key]

    def _params(self, event: Event) -> None:
        texts: dict[str, str] = dict(event["values"])
        long = {key: text for key, text in texts.items() if len(text) > LONGEST_PARAM}
        entries = [Param(k, "in long_params.json" if k in long else v) for k, v in texts.items()]
        for start in range(0, len(entries), MOST_PARAMS):
            self.client.log_batch(self.run_id, params=entries[start : start + MOST_PARAMS])
        if long:
            text = json.dumps(long, ensure_ascii=False, indent=2)
            self.client.log_text(self.run_id, text, "long_params.json")
        self.counts["params"] += len(entries)

    def _tags(self, event: Event) -> None:
        tags = [RunTag(key, self._named(value)) for key, value in event["values"].items()]
        for start in range(0, len(tags), MOST_TAGS):
            self.client.log_batch(self.run_id, tags=tags[start : start + MOST_TAGS])
        self.counts["tags"] += len(tags)

    def _artifact(self, event: Event) -> None:
        path = located(event["path"], self.folder)
        if not path.exists():
            raise LostFileError(f"{path} is gone")
        if path.is_dir():
            self.client.log_artifacts(self.run_id, str(path), artifact_path=path.name)
        elif self._names_itself(path):
            text = path.read_text(encoding="utf-8")
            self.client.log_text(self.run_id, self._named(text), path.name)
        else:
            self.client.log_artifact(self.run_id, str(path))
        self.counts["artifacts"] += 1

    def _names_itself(self, path: Path) -> bool:
        if path.suffix != ".json" or path.stat().st_size > LARGEST_TEXT:
            return False
        return self.local_id.encode() in path.read_bytes()

    def _named(self, text: str) -> str:
        """Replace the id that the run had before the store gave it one."""
        return text.replace(self.local_id, self.run_id)

    def _model(self, event: Event) -> None:
        """Keep the folder as an MLflow model: a pyfunc made from code, nothing pickled."""
        folder, code = (located(event[key], self.folder) for key in ("path", "code"))
        if not folder.is_dir():
            raise LostFileError(f"{folder} is gone")
        model = self._logged_model()
        if str(model.status) != "READY":
            with tempfile.TemporaryDirectory() as made:
                self._save(folder, code, event["class_names"], model, Path(made) / "model")
                self.client.log_model_artifacts(model.model_id, str(Path(made) / "model"))
            self.client.finalize_logged_model(model.model_id, "READY")
        self.counts["models"] += 1

    def _logged_model(self) -> LoggedModel:
        """Return the run's model in the store, as it was left or new."""
        run = self.client.get_run(self.run_id)
        experiment = run.info.experiment_id
        found = self.client.search_logged_models(
            [experiment], f"source_run_id = '{self.run_id}'", max_results=1
        )
        model = found[0] if found else self.client.create_logged_model(
            experiment, name="model", source_run_id=self.run_id, params=run.data.params
        )  # fmt: skip
        held = run.outputs.model_outputs if run.outputs else []
        if model.model_id not in {output.model_id for output in held}:
            self.client.log_outputs(self.run_id, [LoggedModelOutput(model.model_id, step=0)])
        return model

    def _save(
        self, folder: Path, code: Path, names: list[str], model: LoggedModel, to: Path
    ) -> None:
        outputs = [ColSpec("string", "label"), *(ColSpec("double", f"p_{n}") for n in names)]
        mlflow.pyfunc.save_model(
            str(to),
            mlflow_model=Model(
                artifact_path=model.artifact_location,
                run_id=self.run_id,
                model_id=model.model_id,
                model_uuid=model.model_id,
            ),
            python_model=str(code),
            artifacts={"model_folder": str(folder)},
            signature=ModelSignature(
                inputs=Schema([ColSpec("string", "text")]), outputs=Schema(outputs)
            ),
            input_example=pd.DataFrame({"text": EXAMPLE}),
            # The package is on no index, so that the model brings its code.
            code_paths=[str(PACKAGE)],
            pip_requirements=serving_requirements(),
        )

    def _reopen(self, event: Event) -> None:
        """Go on with a run that had come to an end."""
        if "error" in self.client.get_run(self.run_id).data.tags:
            self.client.delete_tag(self.run_id, "error")
        self.client.update_run(self.run_id, status="RUNNING")

    def _finish(self, event: Event) -> None:
        self.client.set_terminated(self.run_id, event["status"], end_time=event["time"])


def serving_requirements() -> list[str]:
    """Return the installed versions of what a model needs to answer, as an index has them.

    A local part such as the +cpu of "2.13.0+cpu" is left out: PyPI has no such versions.
    """
    return [f"{name}=={version(name).partition('+')[0]}" for name in SERVING]


class LostFileError(Exception):
    """A file that was to be kept is no longer there."""
