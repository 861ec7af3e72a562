"""Test the warning about a model that has not learned."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from command_line import _here as _here
from command_line import place as place
from command_line import run
from mlflow import MlflowClient
from report_rows import one_table, trained
from scipy.stats import fisher_exact
from sklearn.dummy import DummyClassifier
from sklearn.metrics import f1_score

from kinopoisk_ft.reporting.locale import LANGUAGES, Locale
from kinopoisk_ft.reporting.notes import caveats
from kinopoisk_ft.tasks.learned import check_learned

TRAIN, TEST = np.repeat([0, 1], [30, 70]), np.repeat([0, 1], [35, 65])


def compared(
    test: np.ndarray,
    validation: np.ndarray,
    losses: tuple[float, ...] = (),
    head_was_fitted: bool = False,
) -> tuple[str, str]:
    """Return the warning for a model with these predictions on 100 test and validation rows."""
    one_hot = np.eye(2)
    fitted: Any = SimpleNamespace(
        test_probabilities=one_hot[test],
        val_probabilities=one_hot[validation],
        history=[{"step": i, "train_loss": loss} for i, loss in enumerate(losses)],
        head_was_fitted=head_was_fitted,
    )
    part = pd.DataFrame({"label": TEST})
    train = pd.DataFrame({"label": TRAIN})
    data: Any = SimpleNamespace(train=train, val=part, test=part, class_names=("Bad", "Good\x1b"))
    return check_learned(fitted, data)


def test_the_warning_has_the_scores_of_scikit_learn() -> None:
    usual = DummyClassifier(strategy="most_frequent").fit(TRAIN, TRAIN).predict(TEST)
    floor = f1_score(TEST, usual, average="weighted")
    warning, parts = compared(usual, TEST)
    assert warning.startswith(
        f"Not significantly above the majority class: f1_weighted {floor:.3f} on test, {floor:.3f} "
        "for always predicting 'Good\ufffd' (p 1). There is no evidence that this model has "
        "learned, so do not compare its score. Try more epochs (trainer.epochs)"
    )
    assert parts == "test"
    warning, parts = compared(TEST, 1 - TEST)
    assert "f1_weighted 0.000 on validation" in warning
    assert parts == "validation"
    assert compared(usual, usual)[1] == "test, validation"


def test_no_warning_if_one_score_is_above() -> None:
    """The model finds the rare class, with a lower accuracy and a higher weighted F1."""
    assert compared(TEST, TEST) == ("", "")
    cautious = TEST.copy()
    cautious[35:71] = 0
    assert (cautious == TEST).mean() < TEST.mean()
    assert f1_score(TEST, cautious, average="weighted") > 0.6
    assert compared(cautious, TEST) == ("", "")


def test_a_score_that_chance_explains_is_not_above() -> None:
    """Two of three rare answers are right, which Fisher's exact test calls chance."""
    lucky = np.ones(100, dtype=int)
    lucky[[0, 1, 99]] = 0
    assert fisher_exact([[2, 33], [1, 64]], alternative="greater").pvalue > 0.05
    warning, parts = compared(lucky, TEST)
    assert parts == "test"
    assert "(p 0." in warning


def test_a_model_without_skill_is_found_out() -> None:
    """Random answers, mostly of the majority class, pass in about 5% of the cases.

    Their weighted F1 is higher than that of the majority class.
    """
    dice = np.random.default_rng(0)
    answers = [np.where(dice.random(100) < 0.9, 1, 0) for _ in range(100)]
    learned = [not compared(answer, TEST)[1] for answer in answers]
    found = np.mean([f1_score(TEST, answer, average="weighted") for answer in answers])
    assert found > f1_score(TEST, np.ones(100), average="weighted")
    # The standard deviation of a share of 5% in 100 cases is 2.2%.
    assert np.mean(learned) <= 0.1


def test_a_training_loss_has_to_fall() -> None:
    falling, flat = (0.7, 0.69, 0.6, 0.5, 0.5, 0.4, 0.4, 0.3), (0.69, 0.7) * 6
    assert compared(TEST, TEST, falling) == ("", "")
    warning, parts = compared(TEST, TEST, flat)
    assert parts == "training loss"
    assert "has not fallen: 0.693 in the first quarter of the steps, 0.697 in the last" in warning
    assert compared(TEST, TEST, (*falling[:6], np.nan, np.nan))[1] == "training loss"
    # A fitted output layer starts at a low loss.
    assert compared(TEST, TEST, flat, head_was_fitted=True) == ("", "")
    # Too few losses show no trend.
    assert compared(TEST, TEST, flat[:6]) == ("", "")


@pytest.mark.parametrize("mode", ["RUN", pytest.param("MULTIRUN", marks=pytest.mark.slow)])
def test_a_run_that_has_not_learned_prints_the_warning(
    mode: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dice = np.random.default_rng(0)
    words = ["".join(dice.choice(list("абвгдежз"), 6)) for _ in range(400)]
    rows = [{"text": " ".join(words[4 * i : 4 * i + 4]), "mark": "rare" if i % 5 == 0 else "usual"}
            for i in range(100)]  # fmt: skip
    pd.DataFrame(rows).to_json(place / "noise.jsonl", orient="records", lines=True)
    name = f"noise{mode}"
    assert run("model=tfidf", "model.class_weight=null", "data.path=noise.jsonl",
               f"output_dir={name}", f"hydra.mode={mode}",
               f"tracking.experiment={name}") == 0  # fmt: skip
    lines = capsys.readouterr().out.splitlines()
    (warned,) = (line for line in lines if "Not significantly above the" in line)
    # A sweep prints it below the line of the job.
    assert warned.startswith("  Not" if mode == "MULTIRUN" else "Not")
    assert "predicting 'usual'" in warned
    client = MlflowClient(f"sqlite:///{place / 'mlflow.db'}")
    experiment = client.get_experiment_by_name(name)
    (found,) = client.search_runs([experiment.experiment_id], "tags.`kinopoisk_ft.kind` = 'train'")
    assert "test" in found.data.tags["not_learned"]
    folder = place / name / ("0" if mode == "MULTIRUN" else "")
    assert "warning" not in json.loads((folder / "result.json").read_text())


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_report_names_what_has_not_learned(language: str) -> None:
    table = one_table(trained(), trained("mamba", not_learned="validation"))
    (note,) = [
        caveat.text
        for caveat in caveats(table, Locale(language))
        if caveat.text.startswith(("No evidence", "Нет признаков"))
    ]
    assert "mamba" in note
    assert "bert" not in note
