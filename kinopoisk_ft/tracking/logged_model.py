"""Save a trained model as an MLflow model that does not need this package to be installed."""

from __future__ import annotations

import tempfile
from importlib.metadata import version
from pathlib import Path

import mlflow
import pandas as pd
from mlflow.entities import LoggedModel, LoggedModelOutput
from mlflow.models import Model, ModelSignature
from mlflow.tracking import MlflowClient
from mlflow.types.schema import ColSpec, Schema

from kinopoisk_ft.tracking.offline import PACKAGE

# The review that MLflow shows as an example of the model's input.
EXAMPLE = ["Фильм понравился, смотрели всей семьёй."]
# The packages that this package imports to predict.
SERVING = (
    "datasets", "huggingface-hub", "hydra-core", "mlflow", "numba", "numpy", "pandas", "peft",
    "psutil", "pydantic", "safetensors", "scikit-learn", "tokenizers", "torch", "transformers",
)  # fmt: skip


def log_model(
    client: MlflowClient, run_id: str, folder: Path, code: Path, class_names: list[str]
) -> None:
    """Log a model folder as the MLflow pyfunc model of a run, unless the run already has one.

    No pickle files are used.

    Args:
        code: the Python file with the pyfunc class that loads the folder.
        class_names: the classes in order. The output has a column `p_<name>` for the probability
            of each class.
    """
    model = _find_or_create(client, run_id)
    # The status becomes READY last, so that an interrupted upload is repeated.
    if str(model.status) != "READY":
        with tempfile.TemporaryDirectory() as made:
            _save(model, run_id, folder, code, class_names, Path(made) / "model")
            client.log_model_artifacts(model.model_id, str(Path(made) / "model"))
        client.finalize_logged_model(model.model_id, "READY")


def _find_or_create(client: MlflowClient, run_id: str) -> LoggedModel:
    run = client.get_run(run_id)
    experiment = run.info.experiment_id
    found = client.search_logged_models([experiment], f"source_run_id = '{run_id}'", max_results=1)
    model = found[0] if found else client.create_logged_model(
        experiment, name="model", source_run_id=run_id, params=run.data.params
    )  # fmt: skip
    linked = run.outputs.model_outputs if run.outputs else []
    if model.model_id not in {output.model_id for output in linked}:
        client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])
    return model


def _save(
    model: LoggedModel, run_id: str, folder: Path, code: Path, class_names: list[str], to: Path
) -> None:
    probabilities = [ColSpec("double", f"p_{name}") for name in class_names]
    mlflow.pyfunc.save_model(
        str(to),
        mlflow_model=Model(
            artifact_path=model.artifact_location,
            run_id=run_id,
            model_id=model.model_id,
            model_uuid=model.model_id,
        ),
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
