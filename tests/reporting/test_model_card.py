"""Test the model card of a run: metadata, scores, intervals, and what it must not contain."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from huggingface_hub import metadata_load
from sklearn.metrics import accuracy_score, f1_score

from kinopoisk_ft.reporting.model_card import SYNTHETIC, write_model_card

RNG = np.random.default_rng(0)
LABELS = RNG.integers(0, 2, 200)
PREDICTED = np.where(RNG.random(200) < 0.85, LABELS, 1 - LABELS)
EXCERPT = "Отличный фильм про котов"
CONFIG = {
    "seed": 7,
    "model": {"_target_": "kinopoisk_ft.models.encoder.Encoder", "name": "/home/anna/models/e5"},
    "adapter": {"_target_": "kinopoisk_ft.adapters.peft.Peft", "lr": 0.002},
    "data": {"_target_": "kinopoisk_ft.data.kinopoisk.Kinopoisk", "path": "/home/anna/my data.csv",
             "name": "blinoff/kinopoisk", "split": "film", "max_length": 64},
    "trainer": {"epochs": 3, "batch_size": 16, "lr": 0.002},
}  # fmt: skip
CARD = {
    "kind": "pooled", "class_names": ["Bad", "Хорошо | очень"], "max_length": 64, "note": "",
    "truncation": "tail", "max_characters": None, "strip_scores": False, "is_peft": True,
    "base": "/home/anna/models/e5", "revision": None,
}  # fmt: skip
COMMAND = (
    "python -m kinopoisk_ft model=encoder model.name=/home/anna/models/e5 "
    "'data.path=\"/home/anna/my data.csv\"' seed=7"
)


def write_run(
    folder: Path,
    config: dict[str, Any] | None = None,
    films: int = 0,
    predicted: np.ndarray = PREDICTED,
) -> Path:
    """Write the files of a run that the card reads."""
    (folder / "model").mkdir(parents=True)
    table = pd.DataFrame({"row": range(200), "label": LABELS, "predicted": predicted})
    for i, name in enumerate(CARD["class_names"]):
        table[f"p_{name}"] = (i == predicted).astype(float)
    table["text"] = EXCERPT
    if films:
        table["group"] = np.arange(200) % films
    table.to_parquet(folder / "predictions.parquet")
    class_report = {
        name: {"precision": 0.8, "recall": 0.9, "f1": 0.85, "support": 100.0}
        for name in CARD["class_names"]
    }
    files = {
        "tags.json": {"approach": "encoder + lora", "command": COMMAND},
        "result.json": {"total_parameters": 1000, "trainable_parameters": 10, "train_seconds": 0.4},
        "data.json": {
            "counts": {"train": 800, "val": 100, "test": 200},
            "leakage": {"leakage_near_duplicates": 3, "leakage_films": 4,
                        "leakage_films_share": 0.5, "leakage_film_guess_accuracy": 0.7,
                        "leakage_majority_accuracy": 0.6},
        },
        "class_report.json": class_report,
        "environment.json": {"device": "cpu", "processor": "A processor", "commit": "abc",
                             "packages": {"kinopoisk-ft": "0.1.0"}},
    }  # fmt: skip
    for name, value in files.items():
        (folder / name).write_text(json.dumps(value, ensure_ascii=False), "utf-8")
    (folder / "config.yaml").write_text(yaml.safe_dump(config or CONFIG, allow_unicode=True))
    return folder


def read_rows(text: str) -> dict[str, list[str]]:
    """Return the cells of all tables by their first cell."""
    lines = (line.strip("| ") for line in text.splitlines() if line.startswith("| "))
    return {cells[0]: cells[1:] for cells in (line.split(" | ") for line in lines)}


def test_scores_and_intervals_equal_independent_ones(tmp_path: Path) -> None:
    write_model_card(write_run(tmp_path), CARD, {"majority_accuracy": 0.5})
    expected = {
        "accuracy": accuracy_score(LABELS, PREDICTED),
        "f1_weighted": f1_score(LABELS, PREDICTED, average="weighted"),
        "f1_macro": f1_score(LABELS, PREDICTED, average="macro"),
    }
    (entry,) = metadata_load(tmp_path / "model" / "README.md")["model-index"]
    found = {m["type"]: m["value"] for r in entry["results"] for m in r["metrics"]}
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=1e-4)
    rows = read_rows((tmp_path / "model" / "README.md").read_text("utf-8"))
    right = PREDICTED == LABELS
    drawn = RNG.integers(0, 200, (5000, 200))
    low, high = np.quantile(right[drawn].mean(axis=1), [0.025, 0.975])
    score, interval, majority = rows["accuracy"]
    assert float(score) == pytest.approx(right.mean(), abs=1e-3)
    assert [float(end) for end in interval.split(" to ")] == pytest.approx([low, high], abs=0.01)
    assert majority == "0.500"
    assert rows["f1_macro"][-1] == "-"


@pytest.mark.parametrize(("films", "lowest", "highest"), [(0, 0.73, 0.77), (5, 0.0, 0.41)])
def test_intervals_draw_whole_films(
    tmp_path: Path, films: int, lowest: float, highest: float
) -> None:
    # All answers for the first of five films are wrong. If whole films are drawn, this film often
    # occurs twice, which gives an accuracy of 0.6. With single reviews, it is rarely below 0.74.
    wrong = np.arange(200) % 5 == 0
    predicted = np.where(wrong, 1 - LABELS, LABELS)
    write_model_card(write_run(tmp_path, films=films, predicted=predicted), CARD)
    text = (tmp_path / "model" / "README.md").read_text("utf-8")
    low = float(read_rows(text)["accuracy"][1].split(" to ")[0])
    assert lowest <= low <= highest
    assert ("groups of test reviews" in text) == bool(films)


def test_peft_gets_the_number_of_classes(tmp_path: Path) -> None:
    """Otherwise, it would build a head for two classes."""
    write_model_card(write_run(tmp_path), {**CARD, "kind": "hf"})
    text = (tmp_path / "model" / "README.md").read_text("utf-8")
    assert 'AutoPeftModelForSequenceClassification.from_pretrained("model", num_labels=2)' in text


def test_the_card_describes_the_run_without_texts_and_folders(tmp_path: Path) -> None:
    warning = "The loss has not fallen."
    metrics = {"leakage_pretraining": 2.0, "test_ece": 0.123, "characters_seen_share": 0.4}
    write_model_card(write_run(tmp_path, films=20), CARD, metrics, warning)
    text = (tmp_path / "model" / "README.md").read_text("utf-8")
    assert "anna" not in text
    assert EXCERPT not in text
    assert str(tmp_path) not in text
    for part in (
        warning, "model.name=e5", "my data.csv", "`film`", "near-duplicate in training: 3",
        "films that are also in training: 4 (50.0%)", "pretraining texts of the base model: 2",
        "800 reviews to train", "20 groups", "reads 40% of the characters",
        "calibration error 0.123", "`Хорошо \\| очень`", "kinopoisk-ft predict model",
        "also needs the base model",
    ):  # fmt: skip
        assert part in text, part
    assert read_rows(text)["`trainer.batch_size`"] == ["`16`"]
    metadata = metadata_load(tmp_path / "model" / "README.md")
    assert metadata["language"] == "ru"
    assert metadata["library_name"] == "kinopoisk_ft"
    assert "base_model" not in metadata
    assert "datasets" not in metadata


def test_a_short_training_time_is_not_zero(tmp_path: Path) -> None:
    write_model_card(write_run(tmp_path), CARD)
    text = (tmp_path / "model" / "README.md").read_text("utf-8")
    assert "Training took 0.4 seconds" in text
    assert "\n- One run with seed 7: another seed gives another score.\n- " in text


def test_base_and_data_of_the_hub_are_metadata(tmp_path: Path) -> None:
    data = {**CONFIG["data"], "path": None}
    folder = write_run(tmp_path, {**CONFIG, "data": data})
    write_model_card(folder, {**CARD, "base": "some/e5", "kind": "hf"})
    metadata = metadata_load(folder / "model" / "README.md")
    assert metadata["base_model"] == "some/e5"
    assert metadata["datasets"] == ["blinoff/kinopoisk"]
    assert metadata["library_name"] == "peft"


def test_the_card_says_that_the_bundled_reviews_are_synthetic(tmp_path: Path) -> None:
    folder = write_run(tmp_path, {**CONFIG, "data": {"_target_": SYNTHETIC, "split": "random"}})
    write_model_card(folder, CARD)
    text = (folder / "model" / "README.md").read_text("utf-8")
    assert "demo (synthetic reviews)" in text.partition("## Data")[2]


def test_tfidf_has_its_own_options_and_no_tokens(tmp_path: Path) -> None:
    model = {"_target_": "kinopoisk_ft.models.tfidf.Tfidf", "ngrams": 2, "targets": {"lora": []}}
    folder = write_run(tmp_path, {**CONFIG, "model": model})
    write_model_card(folder, {**CARD, "kind": "tfidf", "base": None, "is_peft": False})
    text = (folder / "model" / "README.md").read_text("utf-8")
    rows = read_rows(text)
    assert rows["`model.ngrams`"] == ["`2`"]
    assert not {"`data.max_length`", "`trainer.lr`", "`model.targets.lora`"} & {*rows}
    assert "random weights" not in text
    # TF-IDF draws no random numbers.
    assert "another seed" not in text
