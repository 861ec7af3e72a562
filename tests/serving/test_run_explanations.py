"""Test that a report's page shows the words that decided the answers to the hardest reviews."""

from __future__ import annotations

import re
import sys
from html import unescape
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tiny
from mlflow import MlflowClient
from sweeping import DATA, SMALL
from sweeping import _here as _here

from kinopoisk_ft import cli
from kinopoisk_ft.commands import report
from kinopoisk_ft.errors import UserError
from kinopoisk_ft.serving.attributions import Explanation, explain
from kinopoisk_ft.serving.locate import find_model_folder
from kinopoisk_ft.serving.predictor import Predictor
from kinopoisk_ft.serving.run_explanations import explain_runs


def make_words(generator: np.random.Generator) -> list[str]:
    return ["".join(word) for word in generator.choice(list("абвгдежзиклмно"), (12, 6))]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a store of two approaches; the hardest reviews are those with wrong labels."""
    folder = tmp_path_factory.mktemp("explained")
    texts, labels = tiny.reviews(120)
    names = sorted(set(labels))
    swapped = {names[0]: names[1], names[1]: names[0]}
    generator = np.random.default_rng(0)
    # Runs record only the beginning of a review, without this end. The random words keep the
    # reviews from being near-duplicates, which are in the same fold.
    rows = [
        {"text": f"{text} {i} {' '.join(make_words(generator))} и так далее конец",
         "mark": swapped[label] if i % 7 == 0 else label}
        for i, (text, label) in enumerate(zip(texts, labels, strict=True))
    ]  # fmt: skip
    pd.DataFrame(rows).to_json(
        folder / "reviews.jsonl", orient="records", lines=True, force_ascii=False
    )
    return folder


def train(*args: str) -> None:
    before = sys.argv
    try:
        assert cli.main([*DATA, "data.near_duplicates=keep", "trainer.epochs=3", *args]) == 0
    finally:
        sys.argv = before


def shade(place: Path, *models: list[str]) -> list[str]:
    """Train models; return the HTML of the shaded words on the report's page."""
    name = f"explained-{len(models)}"
    for model in models:
        train(*model, f"tracking.experiment={name}")
    assert report.main(["--experiment", name, "--output", name, "--explain", "1", "--no-log"]) == 0
    page = (place / name / "comparison.html").read_text("utf-8")
    assert "Green words speak for the prediction" in page
    return re.findall(r'<p class="words">(.*?)</p>', page)


def test_the_page_shades_the_words_of_the_hardest_review(place: Path) -> None:
    shaded = shade(place, ["model=tfidf", "model.min_df=1", "output_dir=tfidf"])
    (words,) = shaded
    # The word with the largest effect comes first, in the darkest shade.
    assert re.match(r'<span style="background: rgba\([\d, ]+, 0\.60\)" title="[+-]0\.', words)


@pytest.mark.slow
def test_each_fold_explains_the_reviews_of_its_own_test_split(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folds = [
        ["model=tfidf", "model.min_df=1", "data.folds=3", f"data.fold={i}", f"output_dir=fold{i}"]
        for i in range(3)
    ]
    for fold in folds:
        train(*fold, "tracking.experiment=folds")
    used: list[str] = []
    explained: list[tuple[str, int]] = []

    def find(run_id: str, uri: str) -> Path:
        used.append(run_id)
        return find_model_folder(run_id, uri)

    def record(predictor: Predictor, text: str) -> Explanation:
        # The only number in a text is its row.
        explained.extend((used[-1], int(row)) for row in re.findall(r"\d+", text))
        return explain(predictor, text)

    monkeypatch.setattr("kinopoisk_ft.serving.run_explanations.find_model_folder", find)
    monkeypatch.setattr("kinopoisk_ft.serving.run_explanations.explain", record)
    args = ["--experiment", "folds", "--output", "folds", "--explain", "10", "--no-log"]
    assert report.main(args) == 0
    page = (place / "folds" / "comparison.html").read_text("utf-8")
    assert page.count('<p class="words">') == len(explained) > 1
    client = MlflowClient(f"sqlite:///{place / 'mlflow.db'}")
    assert len(set(used)) == len(used) > 1
    for run_id in used:
        fold = client.get_run(run_id).data.params["data.fold"]
        tested = pd.read_parquet(place / f"fold{fold}" / "predictions.parquet")["row"]
        assert {row for run, row in explained if run == run_id} <= set(tested)


def test_a_review_that_is_no_longer_in_the_data_is_reported(place: Path) -> None:
    uri = f"sqlite:///{place / 'mlflow.db'}"
    train("model=tfidf", "model.min_df=1", "tracking.experiment=shorter", "output_dir=shorter")
    client = MlflowClient(uri)
    (experiment,) = [e for e in client.search_experiments() if e.name == "shorter"]
    run = client.search_runs([experiment.experiment_id])[0].info.run_id
    with pytest.raises(UserError, match="not in the test split of the current data"):
        explain_runs(client, uri, {("tfidf", 120): run})


def test_each_run_explains_the_text_that_its_model_reads(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With data.strip_scores, a model reads the same review without its grade."""
    graded = pd.read_json(place / "reviews.jsonl", lines=True)
    graded["text"] += " Оценка: 9 из 10"
    graded.to_json(place / "graded.jsonl", orient="records", lines=True, force_ascii=False)
    uri = f"sqlite:///{place / 'mlflow.db'}"
    client = MlflowClient(uri)
    runs = {}
    for stripped in ("true", "false"):
        train("model=tfidf", "model.min_df=1", "data.path=graded.jsonl", "tracking.experiment=both",
              f"data.strip_scores={stripped}", f"output_dir=stripped_{stripped}")  # fmt: skip
        (experiment,) = [e for e in client.search_experiments() if e.name == "both"]
        run = client.search_runs([experiment.experiment_id])[0].info.run_id
        tested = pd.read_parquet(place / f"stripped_{stripped}" / "predictions.parquet")["row"]
        runs[stripped, int(tested[0])] = run
    texts: list[str] = []

    def record(predictor: Predictor, text: str) -> Explanation:
        texts.append(text)
        return explain(predictor, text)

    monkeypatch.setattr("kinopoisk_ft.serving.run_explanations.explain", record)
    explain_runs(client, uri, runs)
    assert ["9 из 10" in text for text in texts] == [False, True]


@pytest.mark.slow
def test_the_page_shades_whole_reviews_for_networks(place: Path) -> None:
    """The recorded predictions contain only the beginning of each review."""
    tfidf = ["model=tfidf", "model.min_df=1", "output_dir=tfidf2"]
    shaded = shade(place, tfidf, [*SMALL, "output_dir=bert"])
    assert len(shaded) == 2
    network = unescape(re.sub("<[^>]*>", "", max(shaded, key=len)))
    assert network.endswith("и так далее конец")


def test_a_config_from_someone_else_runs_no_code(place: Path) -> None:
    uri = f"sqlite:///{place / 'mlflow.db'}"
    client = MlflowClient(uri)
    (experiment,) = [e for e in client.search_experiments() if e.name == "explained-1"]
    run = client.search_runs([experiment.experiment_id])[0].info.run_id
    config = place / "config.yaml"
    config.write_text("data:\n  _target_: os.system\n  command: touch harmed\n")
    client.log_artifact(run, str(config))
    with pytest.raises(UserError, match=r"os\.system"):
        explain_runs(client, uri, {("tfidf", 0): run})
    assert not (place / "harmed").exists()
    config.write_text("data: [")
    client.log_artifact(run, str(config))
    with pytest.raises(UserError, match="config of the run cannot be read"):
        explain_runs(client, uri, {("tfidf", 0): run})
