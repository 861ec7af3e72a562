"""Log data sets and trained models to MLflow, and register models.

An MLflow model contains the code of this package. It can therefore be loaded without installing
this package.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path

import mlflow
import pandas as pd
from mlflow.entities import (
    Dataset,
    DatasetInput,
    InputTag,
    LoggedModel,
    LoggedModelOutput,
    Metric,
    Run,
)
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.tracking import MlflowClient
from mlflow.types.schema import ColSpec, Schema
from mlflow.utils import requirements_utils
from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT, MLFLOW_MODEL_VERSIONS

from kinopoisk_ft.files import PACKAGE
from kinopoisk_ft.statistics.metrics import HEADLINE
from kinopoisk_ft.tracking.mlflow_names import flat_metrics
from kinopoisk_ft.tracking.offline import NOTE_TAG

# The review that MLflow shows as an example of the model's input.
EXAMPLE = ["Фильм понравился, смотрели всей семьёй."]
# The packages that this package imports to predict.
SERVING = (
    "datasets", "filelock", "huggingface-hub", "hydra-core", "joblib", "mlflow", "numba", "numpy",
    "pandas", "peft", "psutil", "pydantic", "rich", "safetensors", "scikit-learn", "tokenizers",
    "torch", "transformers",
)  # fmt: skip


# Alias of the registered version with the best test score.
CHAMPION = "champion"
# Characters that MLflow does not allow in the name of a model.
FORBIDDEN = re.compile(r"[/:.%\"']")


def log_dataset(client: MlflowClient, run_id: str, context: str, values: dict[str, str]) -> None:
    """Log a part of the data as an input of a run; `values` are fields of an MLflow data set."""
    # MLflow has no field for the role of a data set and stores it as a tag of the run's input.
    found = DatasetInput(Dataset(**values), [InputTag(MLFLOW_DATASET_CONTEXT, context)])
    client.log_inputs(run_id, [found])


def log_model(
    client: MlflowClient,
    run_id: str,
    folder: Path,
    code: Path,
    class_names: list[str],
    name: str,
    tags: dict[str, str],
) -> str:
    """Log a model folder as the MLflow pyfunc model of a run, unless the run already has one.

    No pickle files are used.

    Args:
        code: the Python file with the pyfunc class that loads the folder.
        class_names: the class names in the order of their ids. The output of the model has a
            column `p_<name>` with the probability of each class.
        name, tags: name and tags of a new model.

    Returns:
        The id of the model.
    """
    model = _find_model(client, run_id) or client.create_logged_model(
        client.get_run(run_id).info.experiment_id,
        name=FORBIDDEN.sub("-", name),
        source_run_id=run_id,
        tags=tags,
        params=client.get_run(run_id).data.params,
    )
    _link_output(client, run_id, model)
    # The status becomes READY last, so that an interrupted upload is repeated.
    if str(model.status) != "READY":
        with tempfile.TemporaryDirectory() as made:
            _save(model, run_id, folder, code, class_names, Path(made) / "model")
            client.log_model_artifacts(model.model_id, str(Path(made) / "model"))
        client.finalize_logged_model(model.model_id, "READY")
    return str(model.model_id)


def _find_model(client: MlflowClient, run_id: str) -> LoggedModel | None:
    experiment = client.get_run(run_id).info.experiment_id
    found = client.search_logged_models([experiment], f"source_run_id = '{run_id}'", max_results=1)
    return found[0] if found else None


def _link_output(client: MlflowClient, run_id: str, model: LoggedModel) -> None:
    outputs = client.get_run(run_id).outputs
    linked = outputs.model_outputs if outputs else []
    if model.model_id not in {output.model_id for output in linked}:
        client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])


def link_metrics(
    client: MlflowClient,
    run_id: str,
    model_id: str,
    metrics: Iterable[tuple[str, float, int, int]],
) -> None:
    """Link the test metrics of a run to the model and the test data of the run.

    For this, the metrics are logged again with the ids of the model and the data. The run gets no
    duplicate values, because MLflow stores equal values only once.

    Args:
        metrics: (name, value, time in ms, step).
    """
    test = _find_test_data(client.get_run(run_id))
    about = {"dataset_name": test.name, "dataset_digest": test.digest} if test else {}
    linked = [Metric(*one, model_id=model_id, run_id=run_id, **about) for one in metrics]
    if linked:
        client.log_batch(run_id, metrics=linked)


def _find_test_data(run: Run) -> Dataset | None:
    for found in run.inputs.dataset_inputs if run.inputs else []:
        if any((tag.key, tag.value) == (MLFLOW_DATASET_CONTEXT, "test") for tag in found.tags):
            return found.dataset
    return None


def register_model(client: MlflowClient, run_id: str, name: str) -> None:
    """Register the model of a run as a new version, unless this was already done.

    The alias `champion` moves to the new version if the new version has a higher test score than
    the present champion, or if the present champion was tested on other reviews.

    Raises:
        ValueError: the run has no model.
    """
    model = _find_model(client, run_id)
    if model is None:
        raise ValueError("the run has no model")
    # A check would not be enough, because another job may create the model at the same time.
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_ALREADY_EXISTS", "ALREADY_EXISTS"):
            raise
    found = client.search_model_versions(f"name = '{name}' and run_id = '{run_id}'", max_results=1)
    # For the source "models:/<id>", MLflow would look in the default store of this process.
    version = found[0] if found else client.create_model_version(
        name, model.artifact_location, run_id, description=model.tags.get(NOTE_TAG),
        model_id=model.model_id,
    )  # fmt: skip
    # MLflow's UI shows the versions of a model by this tag.
    versions = json.dumps([{"name": name, "version": version.version}])
    client.set_logged_model_tags(model.model_id, {MLFLOW_MODEL_VERSIONS: versions})
    champion = client.get_registered_model(name).aliases.get(CHAMPION)
    if champion is None or _is_better(client, run_id, name, champion):
        client.set_registered_model_alias(name, CHAMPION, version.version)


def _is_better(client: MlflowClient, run_id: str, name: str, champion: str) -> bool:
    run = client.get_run(run_id)
    try:
        other = client.get_run(client.get_model_version(name, champion).run_id)
    except MlflowException as error:
        # The run of the champion has been deleted for good.
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return True
    tested, tested_other = _find_test_data(run), _find_test_data(other)
    # Scores on different reviews cannot be compared, so the newer model becomes the champion.
    if tested and tested_other and tested.digest != tested_other.digest:
        return True
    score, score_other = (
        flat_metrics(one.data.metrics).get(f"test_{HEADLINE}", 0.0) for one in (run, other)
    )
    return score > score_other


def _save(
    model: LoggedModel, run_id: str, folder: Path, code: Path, class_names: list[str], to: Path
) -> None:
    probabilities = [ColSpec("double", f"p_{name}") for name in class_names]
    # Otherwise, MLflow spends half a second on checking that the requirements are installed. The
    # requirements name the installed versions, so no check is necessary.
    requirements_utils._MODULES_TO_PACKAGES = {}
    mlflow.pyfunc.save_model(
        str(to),
        mlflow_model=Model(
            artifact_path=model.artifact_location,
            run_id=run_id,
            model_id=model.model_id,
            model_uuid=model.model_id,
        ),
        # For the path of a Python file, MLflow copies the source code and writes no pickle file.
        python_model=str(code),
        artifacts={"model_folder": str(folder)},
        signature=ModelSignature(
            inputs=Schema([ColSpec("string", "text")]),
            outputs=Schema([ColSpec("string", "label"), *probabilities]),
        ),
        input_example=pd.DataFrame({"text": EXAMPLE}),
        # This package is not on PyPI, so its code is saved with the model.
        code_paths=[str(PACKAGE)],
        pip_requirements=serving_requirements(),
    )


def serving_requirements() -> list[str]:
    """Return pip requirements with the installed versions of the packages needed for prediction.

    The suffix of a version such as "2.13.0+cpu" is removed, because PyPI has no such versions.
    """
    return [f"{name}=={version(name).partition('+')[0]}" for name in SERVING]
