"""Serve a saved model with MLflow.

MLflow stores this file as the model's code ("models from code"), so nothing is pickled.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.pyfunc import PythonModel, PythonModelContext

from kinopoisk_ft.errors import UserError


class ReviewClassifier(PythonModel):
    """An MLflow model that classifies texts."""

    def load_context(self, context: PythonModelContext) -> None:
        """Load the model folder."""
        # MLflow also runs this file to log a model, which needs no network.
        from kinopoisk_ft.serving.predictor import Predictor

        self._predictor = Predictor(Path(context.artifacts["model_folder"]))

    def predict(
        self, context: PythonModelContext | None, model_input: pd.DataFrame, params: Any = None
    ) -> pd.DataFrame:
        """Return the columns `label` and `p_<class>`, with one row per text.

        `model_input` can also be a list. The annotation does not say so, because MLflow would then
        check the type of each input and reject DataFrames.
        """
        try:
            return self._predictor.predict(extract_texts(model_input))
        except UserError as error:
            # MLflow's server hides the messages of all other exceptions from the client.
            raise MlflowException.invalid_parameter_value(str(error)) from error


def extract_texts(model_input: Any) -> list[str]:
    """Return a list of texts from MLflow's model input, which is a frame or a list."""
    if isinstance(model_input, pd.DataFrame):
        if "text" not in model_input and model_input.shape[1] != 1:
            raise UserError(
                f"there is no column 'text' among {', '.join(map(str, model_input.columns))}",
                where="the model's input",
                fix="rename the column of reviews to 'text'",
            )
        # The name of a single column does not matter.
        model_input = model_input["text" if "text" in model_input else model_input.columns[0]]
    return list(model_input)


mlflow.models.set_model(ReviewClassifier())
