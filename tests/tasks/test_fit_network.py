"""Test which files a run saves in its model folder, and that an earlier model is deleted."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import tiny
from command_line import BERT, run
from command_line import _here as _here
from command_line import place as place
from networks import make
from transformers import AutoTokenizer, BertForSequenceClassification, pipeline

from kinopoisk_ft.errors import UserError
from kinopoisk_ft.serving.predictor import Predictor
from kinopoisk_ft.serving.publishing import list_uploads
from kinopoisk_ft.tasks import fit_network, record
from kinopoisk_ft.tasks.fit_network import digest_inputs
from kinopoisk_ft.tasks.result import Fitted
from kinopoisk_ft.training.batching import Examples

PRETRAINED = ["model=encoder", f"model.name={tiny.bert()}", "model.pooling=pooler"]


def train(place: Path, *args: str) -> tuple[set[str], list[str], np.ndarray]:
    """Train in the folder `again`; return the names of its model files, and test predictions.

    The predictions are the texts, and their probabilities during the run.
    """
    assert run(*args, "output_dir=again", "tracking=none") == 0
    folder = place / "again" / "model"
    names = {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}
    found = pd.read_parquet(place / "again" / "predictions.parquet")
    reviews = pd.read_json(place / "reviews.jsonl", lines=True)["text"]
    return names, reviews[found["row"]].tolist(), found[["p_minus", "p_plus"]].to_numpy()


@pytest.mark.slow
def test_a_second_run_replaces_the_model_of_the_first(place: Path) -> None:
    folder = place / "again" / "model"
    names, texts, expected = train(place, *BERT, "adapter=lora")
    assert {"adapter_config.json", "base/encoder/config.json"} <= names
    np.testing.assert_allclose(Predictor(folder, "cpu").probabilities(texts), expected, atol=1e-5)
    (folder / "notes.txt").write_text("mine")
    names, texts, expected = train(place, *PRETRAINED, "adapter=lora")
    assert not any(name.startswith("base/") for name in names)
    np.testing.assert_allclose(Predictor(folder, "cpu").probabilities(texts), expected, atol=1e-5)
    names, texts, expected = train(place, *PRETRAINED, "adapter=none")
    assert not any(name.startswith("adapter_") for name in names)
    np.testing.assert_allclose(Predictor(folder, "cpu").probabilities(texts), expected, atol=1e-5)
    answers = pipeline("text-classification", str(folder), device="cpu")(texts, truncation=True)
    scores = [answer["score"] for answer in answers]
    np.testing.assert_allclose(scores, expected.max(axis=1), atol=1e-5)
    assert "notes.txt" in names
    assert train(place, "model=tfidf", "model.min_df=1")[0] == {
        "kinopoisk_ft.json", "tfidf.json", "tfidf.safetensors", "README.md", "notes.txt"
    }  # fmt: skip


@pytest.mark.parametrize("is_main", [True, False])
def test_only_rank_0_saves_the_base(
    is_main: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, adapter, network, _ = make("bert_scratch", "lora")
    monkeypatch.setattr(fit_network, "is_main", lambda: is_main)
    fit_network._apply_adapter(adapter, network, tmp_path / "model")
    assert (tmp_path / "model" / "base").is_dir() is is_main


def test_a_base_that_an_earlier_version_left_is_neither_loaded_nor_published(place: Path) -> None:
    folder = place / "again" / "model"
    _, texts, expected = train(place, *PRETRAINED, "adapter=lora")
    (folder / "base").mkdir(exist_ok=True)
    (folder / "base" / "config.json").write_text("{}")
    np.testing.assert_allclose(Predictor(folder, "cpu").probabilities(texts), expected, atol=1e-5)
    assert "base/config.json" not in list_uploads(folder, "some/base")


@pytest.mark.parametrize("is_peft", [True, False])
def test_a_model_is_not_saved_over_its_base(is_peft: bool, tmp_path: Path) -> None:
    """The files of an earlier model are deleted, and here they would be those of the base."""
    network = make("bert")[2]
    network.base = str(tmp_path / "model" / "encoder")
    adapter = SimpleNamespace(needs_saved_base=is_peft, freezes=True)
    with pytest.raises(UserError, match="the base model is in the folder to which this run saves"):
        fit_network._apply_adapter(adapter, network, tmp_path / "model")


@pytest.mark.parametrize("names", [("minus", "plus"), ("other", "names")])
def test_a_loaded_head_is_known_as_fitted(
    names: tuple[str, ...], place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The training loss of a model that knows the task already need not fall."""
    made = BertForSequenceClassification.from_pretrained(
        tiny.bert(), id2label=dict(enumerate(names))
    )
    made.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(tiny.bert()).save_pretrained(tmp_path)
    found: list[bool] = []

    def check(fitted: Fitted, _: object) -> tuple[str, str]:
        found.append(fitted.head_was_fitted)
        return "", ""

    monkeypatch.setattr(record, "check_learned", check)
    assert run("model=encoder", f"model.name={tmp_path}", "adapter=head", "trainer.max_steps=1",
               "output_dir=loaded", "tracking=none") == 0  # fmt: skip
    assert found == [names == ("minus", "plus")]


def test_a_corrected_label_changes_the_digest_of_the_inputs() -> None:
    def digest(train: list[int] | None, val: list[int] | None) -> dict[str, str]:
        parts = (Examples([[1]] * 2, None if y is None else np.array(y)) for y in (train, val))
        return digest_inputs(SimpleNamespace(split_digest="same"), *parts)

    first = digest([0, 1], [1, 0])
    for other in (digest([1, 1], [1, 0]), digest([0, 1], [1, 1])):
        assert {key for key in first if first[key] != other[key]} == {"labels"}
    assert digest([0, 1], [1, 0]) == first
    assert set(digest(None, None)) == {"split", "tokens"}
