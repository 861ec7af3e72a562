"""Test data sets, models and registered models in MLflow, which repeated replays send once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from syncing import _here as _here
from syncing import client as client
from syncing import place as place
from syncing import runs_of

from kinopoisk_ft.commands import sync
from kinopoisk_ft.errors import UserError
from kinopoisk_ft.files import PACKAGE
from kinopoisk_ft.tracking import logged_model
from kinopoisk_ft.tracking.event_log import find_logs
from kinopoisk_ft.tracking.offline import OfflineTracker, close_killed

CODE = PACKAGE / "serving" / "pyfunc.py"


def make_tracker(experiment: str, register: str | None, log_model: bool = True) -> OfflineTracker:
    return OfflineTracker(
        uri=None, artifacts=None, experiment=experiment, log_model=log_model, register=register
    )


@pytest.fixture(autouse=True)
def _no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the files of the model, which take seconds to write."""

    def save(*args: Any) -> None:
        Path(args[-1]).mkdir()
        (Path(args[-1]) / "MLmodel").write_text("")

    monkeypatch.setattr(logged_model, "_save", save)


def record(folder: Path, approach: str, score: float, digest: str, experiment: str) -> None:
    run = make_tracker(experiment, "reviews")
    tags = {"approach": approach, "data": "kinopoisk", "commit": "abc-dirty"}
    run.start(approach, {}, tags, folder=folder)
    for context in ("train", "test"):
        fields = {"source_type": "local", "source": "{}", "schema": "{}", "profile": "{}"}
        run.dataset(context, {"digest": f"{context} {digest}", **fields})
    run.metrics({"train_loss": 0.5}, 1)
    run.metrics({"test_f1_weighted": score, "test_loss": 1 - score}, 2)
    run.tags({"mlflow.note.content": f"predict {run._log.local_id}"})
    (folder / "model").mkdir()
    run.model(folder / "model", CODE, ("Bad", "Good"))
    run.finish("FINISHED")


def get_champion(client: MlflowClient) -> str | None:
    version = client.get_registered_model("reviews").aliases["champion"]
    return client.get_model_version("reviews", version).run_id


def test_models_are_ranked_and_registered_once(client: MlflowClient, tmp_path: Path) -> None:
    for name, score in (("bert", 0.8), ("bert + lora", 0.9), ("e5:small", 0.7)):
        record(tmp_path / name, name, score, "a", "ranked")
    assert sync.main([str(tmp_path)]) == 0
    for log in find_logs(tmp_path, below=True):
        # A process that dies before it saves its state sends everything again.
        log.state_file.unlink()
    assert sync.main([str(tmp_path)]) == 0
    experiment = client.get_experiment_by_name("ranked").experiment_id
    order = [{"field_name": "metrics.test/f1_weighted", "ascending": False}]
    models = client.search_logged_models([experiment], order_by=order)
    assert [model.name for model in models] == ["bert + lora", "bert", "e5-small"]
    for model in models:
        found = {(m.key, m.value, m.dataset_name, m.dataset_digest) for m in model.metrics}
        score = client.get_run(model.source_run_id).data.metrics["test/f1_weighted"]
        assert found == {
            ("test/f1_weighted", score, "kinopoisk", "test a"),
            ("test/loss", 1 - score, "kinopoisk", "test a"),
        }
        assert len(model.metrics) == 2
        assert model.tags["mlflow.note.content"] == f"predict {model.source_run_id}"
        assert model.tags["mlflow.source.git.commit"] == "abc"
    runs = {run.info.run_name: run for run in runs_of(client, "ranked")}
    for run in runs.values():
        inputs = [(one.tags[0].value, one.dataset.digest) for one in run.inputs.dataset_inputs]
        assert sorted(inputs) == [("test", "test a"), ("train", "train a")]
        assert len(client.get_metric_history(run.info.run_id, "test/loss")) == 1
    assert run.data.tags["mlflow.source.type"] == "LOCAL"
    assert run.data.tags["mlflow.user"]
    assert len(client.search_model_versions("name = 'reviews'")) == 3
    assert get_champion(client) == runs["bert + lora"].info.run_id

    # A score on other reviews cannot be compared, so the alias moves to the newer version.
    record(tmp_path / "other", "other data", 0.1, "b", "ranked")
    assert sync.main([str(tmp_path)]) == 0
    (newest,) = (r for r in runs_of(client, "ranked") if r.info.run_name == "other data")
    assert get_champion(client) == newest.info.run_id


def test_a_model_that_is_not_logged_cannot_be_registered() -> None:
    with pytest.raises(UserError, match=r"(?s)tracking\.register.*log_model=true"):
        make_tracker("x", "reviews", log_model=False)
    for name in ("", " ", "a/b", "a:b", "a'b"):
        with pytest.raises(UserError, match="is not the name of a registered model"):
            make_tracker("x", name)


def test_system_metrics_continue_after_a_resume(
    client: MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "60")
    settings = {"uri": None, "artifacts": None, "experiment": "load", "log_model": False}
    run = OfflineTracker(**settings, system_metrics=True)
    tags = {"model": "bert"}
    run_id = run.start("one", {}, tags, folder=tmp_path)
    run.finish("KILLED")
    # The process that ends a killed run has another load.
    OfflineTracker(**settings).start("one", {}, {}, resume=run_id, folder=tmp_path)
    close_killed(OfflineTracker(**settings, system_metrics=True), tmp_path, None)
    assert run.start("one", {}, tags, resume=run_id, folder=tmp_path) == run_id
    run.finish("FINISHED")
    assert sync.main([str(tmp_path)]) == 0
    (found,) = runs_of(client, "load")
    for name in ("cpu_utilization_percentage", "system_memory_usage_megabytes"):
        points = client.get_metric_history(found.info.run_id, f"system/{name}")
        assert [point.step for point in points] == [0, 1]
        assert all(point.value >= 0 for point in points)
