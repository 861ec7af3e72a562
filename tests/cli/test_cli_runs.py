"""Test runs from the command line: results, records in the store, and predictions."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import mlflow
import pandas as pd
import pytest
import tiny
from command_line import BERT, DATA, SMALL, complete, run
from command_line import _here as _here
from command_line import place as place
from forks import CHILDREN
from mlflow import MlflowClient
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from kinopoisk_ft.commands import predict
from kinopoisk_ft.statistics.calibration import calibration_metrics
from kinopoisk_ft.tracking.mlflow_names import flat_metrics


def complete_anew(args: Sequence[str], folder: Path) -> None:
    """Do what `complete` does in a new interpreter, which takes seconds to import everything."""
    env = {**os.environ, "KINOPOISK_FT_CACHE": str(folder / "cache")}
    with (folder / "stdout.txt").open("w") as out, (folder / "stderr.txt").open("w") as err:
        command = [sys.executable, "-m", "kinopoisk_ft", *args]
        subprocess.run(command, cwd=folder, env=env, check=True, stdout=out, stderr=err)


def complete_in_a_fork(args: Sequence[str], folder: Path) -> None:
    process = CHILDREN.Process(target=complete, args=(args, folder))
    process.start()
    process.join(100)
    assert process.exitcode == 0, (folder / "stderr.txt").read_text("utf-8")


@pytest.fixture(
    scope="module",
    params=[complete_in_a_fork, pytest.param(complete_anew, marks=pytest.mark.slow)],
    ids=["a fork", "a new interpreter"],
)
def finished(place: Path, request: pytest.FixtureRequest) -> dict[str, object]:
    """Return the result of one complete run with a store, in another process."""
    shutil.rmtree(place / "first", ignore_errors=True)
    request.param(
        [*DATA, *SMALL, *BERT, "adapter=lora", "output_dir=first", "result_json=first.json",
         "seed=3", "tuning_trials=8", "rerun=true", "trainer/loss=label_smoothing"], place,
    )  # fmt: skip
    out, err = (place / "stdout.txt").read_text("utf-8"), (place / "stderr.txt").read_text("utf-8")
    assert "Warning: " not in err
    assert "mlflow.pyfunc" not in err
    assert "test f1_weighted " in out
    assert "(always predicting the majority class: 0." in out
    assert "kinopoisk-ft predict" in out
    # Details are only in the log file.
    details = "names of all trainable parameters"
    assert details not in out + err
    assert details in (place / "first" / "run.log").read_text("utf-8")
    result: dict[str, object] = json.loads((place / "first.json").read_text())
    return result


def test_result_has_the_promised_keys(finished: dict[str, object], place: Path) -> None:
    assert set(finished) == {
        "accuracy", "f1_weighted", "f1_macro", "mcc", "train_seconds", "eval_seconds",
        "trainable_parameters", "total_parameters", "run_id", "model_dir",
    }  # fmt: skip
    assert Path(str(finished["model_dir"])) == place / "first" / "model"


def test_store_has_everything(finished: dict[str, object], place: Path, tmp_path: Path) -> None:
    client = MlflowClient(f"sqlite:///{place / 'mlflow.db'}")
    found = client.get_run(str(finished["run_id"]))
    assert found.info.status == "FINISHED"
    tags, params, metrics = found.data.tags, found.data.params, flat_metrics(found.data.metrics)
    assert (tags["model"], tags["adapter"], tags["seed"]) == ("bert_scratch", "lora", "3")
    assert tags["approach"] == "bert_scratch + lora"
    assert params["adapter.config.r"] == "8"
    assert tags["adapter_targets"].startswith("query x")
    assert params["trainer.epochs"] == "2"
    for key in ("tokenize_seconds", "tokens_per_second", "peak_memory_mb", "val_seconds"):
        assert metrics[key] > 0
    assert len(client.get_metric_history(found.info.run_id, "val/f1_weighted")) == 2
    assert metrics["tuning_trials"] == 8
    names = {file.path for file in client.list_artifacts(found.info.run_id)}
    assert names >= {
        "config.yaml", "environment.json", "result.json", "predictions.parquet",
        "predictions_validation.parquet",
        "class_report.json", "confusion_matrix.png", "learning_curve.png",
    }  # fmt: skip
    table = pd.read_parquet(client.download_artifacts(found.info.run_id, "predictions.parquet"))
    labels, guesses = table["label"], table["predicted"]
    assert metrics["test_accuracy"] == pytest.approx(accuracy_score(labels, guesses))
    f1 = f1_score(labels, guesses, average="weighted")
    assert metrics["test_f1_weighted"] == pytest.approx(f1) == finished["f1_weighted"]
    mcc = matthews_corrcoef(labels, guesses)
    assert metrics["test_mcc"] == pytest.approx(mcc) == finished["mcc"]
    assert {"val_mcc", "majority_mcc"} <= set(metrics)
    assert table[["p_minus", "p_plus"]].sum(axis=1).to_numpy() == pytest.approx(1.0)
    # The test loss is the cross-entropy, also of a run that trains with another loss.
    assert metrics["test_nll"] == pytest.approx(metrics["test_loss"], rel=1e-5)


def test_temperature_is_fitted_on_the_recorded_validation_predictions(
    finished: dict[str, object], place: Path
) -> None:
    client = MlflowClient(f"sqlite:///{place / 'mlflow.db'}")
    run_id = str(finished["run_id"])
    metrics = flat_metrics(client.get_run(run_id).data.metrics)
    tables = [
        pd.read_parquet(client.download_artifacts(run_id, f"predictions{part}.parquet"))
        for part in ("", "_validation")
    ]
    assert not set(tables[0]["row"]) & set(tables[1]["row"])
    test, val = ((t[["p_minus", "p_plus"]].to_numpy(), t["label"].to_numpy()) for t in tables)
    expected = calibration_metrics(*val, *test)
    assert expected["temperature"] > 0
    assert {key: metrics[key] for key in expected} == pytest.approx(expected)
    best = max(m.value for m in client.get_metric_history(run_id, "val/f1_weighted"))
    again = f1_score(tables[1]["label"], tables[1]["predicted"], average="weighted")
    assert again == pytest.approx(best)


def test_predictions_agree_everywhere(
    finished: dict[str, object], place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = pd.DataFrame({"text": [tiny.GOOD, tiny.BAD]})
    table.to_csv("in.csv", index=False)
    answers = []
    for model in (str(finished["run_id"]), "first"):
        assert predict.main([model, "--input", "in.csv", "--output", "out.jsonl"]) == 0
        answers.append(pd.read_json("out.jsonl", lines=True))
    pd.testing.assert_frame_equal(*answers)
    client = MlflowClient(f"sqlite:///{place / 'mlflow.db'}")
    outputs = client.get_run(str(finished["run_id"])).outputs
    mlflow.set_tracking_uri(f"sqlite:///{place / 'mlflow.db'}")
    served = mlflow.pyfunc.load_model(f"models:/{outputs.model_outputs[0].model_id}").predict(table)
    assert served["label"].tolist() == answers[0]["predicted_label"].tolist()
    assert served["p_plus"].to_numpy() == pytest.approx(answers[0]["predicted_p_plus"], abs=1e-6)
    capsys.readouterr()
    assert predict.main(["first", tiny.GOOD]) == 0
    assert served["label"][0] in capsys.readouterr().out


def test_data_options_apply_to_training_and_prediction(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Training, records and predictions use the same split, truncation and stripping."""
    texts, labels = tiny.reviews(80, seed=5)
    pd.DataFrame({"text": [f"{t} {i}. {9 if x else 2} из 10" for i, (t, x) in
                           enumerate(zip(texts, labels, strict=True))],
                  "mark": labels, "film": [f"Фильм {i % 9}" for i in range(80)]}).to_json(
        place / "films.jsonl", orient="records", lines=True, force_ascii=False)  # fmt: skip
    options = ["data.path=films.jsonl", "data.split=film", "data.strip_scores=true",
               "data.truncation=head_tail", "data.max_characters=60"]  # fmt: skip
    for name, model in (
        ("net", [*BERT, "trainer.class_weights=balanced", "data.max_length=8"]),
        ("words", ["model=tfidf"]),
    ):
        assert run(*model, *options, f"output_dir={name}", "tracking.experiment=options") == 0
        client = MlflowClient(f"sqlite:///{place / 'mlflow.db'}")
        run_id = json.loads((place / name / "result.json").read_text())["run_id"]
        metrics = flat_metrics(client.get_run(run_id).data.metrics)
        assert metrics["leakage_films"] == 0
        assert metrics["leakage_film_guess_accuracy"] == metrics["leakage_majority_accuracy"]
        assert 0 < metrics["characters_seen_share"] < 1
        assert ("tokens_seen_share" in metrics) is (name == "net")
        files = {file.path for file in client.list_artifacts(run_id)}
        assert "data.json" in files
        assert ("learning_curve.png" in files) is (name == "net")
        assert (
            json.loads((place / name / "data.json").read_text())["counts"]["grades_removed"] == 80
        )
        table = pd.read_parquet(place / name / "predictions.parquet")
        assert 0 < table["truncated"].mean() < 1
        asked = pd.read_json(place / "films.jsonl", lines=True).iloc[table["row"]]
        asked.to_json(place / "asked.jsonl", orient="records", lines=True)
        assert predict.main([name, "--input", "asked.jsonl", "--output", "said.jsonl"]) == 0
        said = pd.read_json(place / "said.jsonl", lines=True)
        assert said["predicted_p_1"].to_numpy() == pytest.approx(table["p_1"], abs=1e-5)
    capsys.readouterr()


def test_sweep_is_one_parent_with_children(place: Path) -> None:
    code = run("-m", "model=tfidf", "tracking.experiment=swept", "seed=0,1", "output_dir=swept",
               "result_json=swept.json")  # fmt: skip
    assert code == 0
    client = MlflowClient(f"sqlite:///{place / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("swept")
    runs = client.search_runs([experiment.experiment_id])
    parent = [r for r in runs if r.data.tags["kinopoisk_ft.kind"] == "sweep"]
    children = [r for r in runs if r.data.tags["kinopoisk_ft.kind"] == "train"]
    assert (len(parent), len(children)) == (1, 2)
    assert {r.data.tags["mlflow.parentRunId"] for r in children} == {parent[0].info.run_id}
    assert parent[0].info.status == "FINISHED"
    assert {json.loads((place / f"swept.{i}.json").read_text())["run_id"] for i in (0, 1)} == {
        r.info.run_id for r in children
    }


def test_predict_reports_mistakes(capsys: pytest.CaptureFixture[str], place: Path) -> None:
    pd.DataFrame({"text": ["хорошо", " "]}).to_csv("gap.csv", index=False)
    pd.DataFrame({"text": ["хорошо"], "predicted_label": ["Bad"]}).to_csv("again.csv", index=False)
    cases = [
        (["nowhere", "text"], "is not a folder, and no such run was found"),
        (["first"], "no reviews are given"),
        (["first", "--input", "gap.csv"], "row 2"),
        (["first", "text", "--output", "out.xls"], ".jsonl, .csv or .parquet"),
        (["first", "text", "--output", "gap.csv/out.csv"], "the file cannot be written"),
        (["first", "--input", "again.csv"], "already has a column 'predicted_label'"),
    ]
    for args, told in cases:
        assert predict.main(args) == 1
        assert told in capsys.readouterr().err
