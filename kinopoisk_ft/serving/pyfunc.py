"""The model as MLflow serves it: a frame or list of texts in, label and probabilities out.

MLflow reads this file as the model's code, so that nothing is pickled.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
from mlflow.pyfunc import PythonModel, PythonModelContext

from kinopoisk_ft.errors import UserError
from kinopoisk_ft.serving.predictor import Predictor


class ReviewClassifier(PythonModel):
    """Takes a frame with a column `text` (or one column of any name), or a list of texts."""

    def load_context(self, context: PythonModelContext) -> None:
        """Read the model folder."""
        self._predictor = Predictor(Path(context.artifacts["model_folder"]))

    def predict(
        self, context: PythonModelContext | None, model_input: pd.DataFrame, params: Any = None
    ) -> pd.DataFrame:
        """Return the columns label and p_<class>, a row for each text.

        Said to take a frame, of which MLflow checks nothing: it comes as the signature has it.
        """
        return self._predictor.predict(texts_of(model_input))


def texts_of(model_input: Any) -> list[str]:
    """Return what stands for texts in what MLflow hands over; raises UserError without a column."""
    if isinstance(model_input, pd.DataFrame):
        column = "text" if "text" in model_input else model_input.columns[0]
        if "text" not in model_input and model_input.shape[1] != 1:
            raise UserError(
                f"no column 'text' among {', '.join(map(str, model_input.columns))}",
                where="the model's input",
                fix="name the column of reviews 'text'",
            )
        model_input = model_input[column]
    return list(model_input)


mlflow.models.set_model(ReviewClassifier())
