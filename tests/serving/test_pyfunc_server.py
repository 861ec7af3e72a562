"""Serve a logged model with MLflow's commands, and send it requests over HTTP."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from command_line import BERT, run
from command_line import _here as _here
from command_line import place as place
from mlflow import MlflowClient
from mlflow_server import make_command, make_environment, make_request, post, serve

from kinopoisk_ft.serving.predictor import Predictor

TEXTS = ["Прекрасный фильм, всем советую.", "Скучный сюжет, жаль времени.", "Фильм ужасный."]


@pytest.fixture(scope="module")
def logged(place: Path) -> dict[str, Path]:
    """The output folders of two runs that logged their models to the store in `place`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setenv("KINOPOISK_FT_CACHE", str(place / "cache"))
        assert run(*BERT, "adapter=lora", "output_dir=lora") == 0
        assert run("model=tfidf", "model.min_df=1", "output_dir=tfidf") == 0
    return {name: place / name for name in ("lora", "tfidf")}


def find_model(folder: Path) -> tuple[str, dict[str, str]]:
    """Return the URI of the model that a run logged, and the variable that names the store."""
    run_id = json.loads((folder / "result.json").read_text("utf-8"))["run_id"]
    store = f"sqlite:///{folder.parent / 'mlflow.db'}"
    (output,) = MlflowClient(store).get_run(run_id).outputs.model_outputs
    return f"models:/{output.model_id}", {"MLFLOW_TRACKING_URI": store}


def check(predictions: list[dict[str, object]], folder: Path) -> None:
    found, expected = pd.DataFrame(predictions), Predictor(folder / "model", "cpu").predict(TEXTS)
    assert found["label"].tolist() == expected["label"].tolist()
    columns = ["p_minus", "p_plus"]
    assert np.allclose(found[columns], expected[columns], atol=1e-4)
    # A model with equal answers to all texts could not show that the texts arrived.
    assert expected["p_plus"].nunique() == len(TEXTS)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lora", "tfidf"])
def test_the_server_answers_like_predict(
    logged: dict[str, Path], tmp_path: Path, name: str
) -> None:
    uri, store = find_model(logged[name])
    with serve(uri, tmp_path, store) as url:
        status, answer = post(url, TEXTS)
        assert status == 200
        check(answer["predictions"], logged[name])
        status, answer = post(url, [" "])
        assert status == 400
        assert "1 of 1 texts are empty" in answer["message"]


@pytest.mark.slow
def test_the_command_predicts_like_predict(logged: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "in.json").write_text(json.dumps(make_request(TEXTS), ensure_ascii=False), "utf-8")
    uri, store = find_model(logged["lora"])
    command = make_command("predict", uri, "-i", "in.json", "-o", "out.json")
    environment = make_environment(store)
    subprocess.run(command, env=environment, cwd=tmp_path, check=True, capture_output=True)
    out = json.loads((tmp_path / "out.json").read_text("utf-8"))
    check(out["predictions"], logged["lora"])
