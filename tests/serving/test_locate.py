"""Test how a command finds a model folder, and what it says if there is none."""

from __future__ import annotations

from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import LoggedModelOutput

from kinopoisk_ft.errors import UserError
from kinopoisk_ft.models.card import CARD
from kinopoisk_ft.serving.locate import find_model_folder


@pytest.fixture(autouse=True)
def _work_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def test_the_current_folder_has_a_name_and_a_parent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`export` writes next to the model folder, and `publish` looks for the files of its run."""
    model = tmp_path / "run" / "model"
    model.mkdir(parents=True)
    (model / CARD).touch()
    monkeypatch.chdir(model)
    for name in (".", "..", str(tmp_path / "run"), "../model"):
        assert find_model_folder(name) == model


def test_a_mistyped_folder_is_named_where_no_store_exists(tmp_path: Path) -> None:
    for name in ("outputs/lroa", "~nobody-has-this-name/run"):
        with pytest.raises(UserError, match=f"'{name}' is not a folder, and no such") as caught:
            find_model_folder(name)
    assert "correct the path of the folder" in str(caught.value)
    assert "the MLflow store does not exist" in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_store_that_does_not_answer_is_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    # Nothing listens on port 1.
    with pytest.raises(UserError, match="API request to http"):
        find_model_folder("0123456789abcdef", "http://127.0.0.1:1")


def test_a_model_that_the_store_has_lost(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    client = MlflowClient(uri)
    run_id = client.create_run("0").info.run_id
    model = client.create_logged_model("0", source_run_id=run_id)
    client.log_outputs(run_id, [LoggedModelOutput(model.model_id, 0)])
    with pytest.raises(UserError, match=f"the model of run '{run_id}' cannot be downloaded"):
        find_model_folder(run_id, uri)
