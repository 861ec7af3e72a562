"""Test `kinopoisk-ft publish` with the run of a command and a local hub server."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from command_line import BERT, run
from command_line import _here as _here
from command_line import place as place
from hub_server import TOKEN, HubServer
from huggingface_hub import constants, metadata_load

from kinopoisk_ft.cli import main
from kinopoisk_ft.run_folder import UNFINISHED
from kinopoisk_ft.serving.predictor import Predictor

TEXTS = ["Прекрасный фильм, всем советую.", "Скучно и глупо, жаль времени."]


@pytest.fixture(scope="module")
def finished(place: Path) -> Path:
    """The output folder of a run with LoRA."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setenv("KINOPOISK_FT_CACHE", str(place / "cache"))
        assert run(*BERT, "adapter=lora", "output_dir=lora", "tracking=none") == 0
    return place / "lora"


@pytest.fixture(autouse=True)
def _use_stand_in(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)


def test_the_run_leaves_its_model_card(finished: Path) -> None:
    text = (finished / "model" / "README.md").read_text("utf-8")
    command = json.loads((finished / "tags.json").read_text("utf-8"))["command"]
    assert command in text
    assert "adapter=lora" in command
    result = json.loads((finished / "result.json").read_text("utf-8"))
    (entry,) = metadata_load(finished / "model" / "README.md")["model-index"]
    found = {m["type"]: m["value"] for r in entry["results"] for m in r["metrics"]}
    assert found["f1_weighted"] == pytest.approx(result["f1_weighted"], abs=1e-4)
    assert "[More Information Needed]" not in text


def test_a_published_model_predicts_the_same(
    finished: Path, hub: HubServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["publish", str(finished), "me/reviews"]) == 0
    out = capsys.readouterr().out
    assert f"published: {hub.url}/me/reviews" in out
    assert "not uploaded" not in out
    assert hub.private == {"me/reviews": True}
    expected = Predictor(finished / "model", "cpu").probabilities(TEXTS)
    found = Predictor(hub.repo("me/reviews"), "cpu").probabilities(TEXTS)
    assert np.array_equal(found, expected)


def test_a_dry_run_shows_files_and_card_and_uploads_nothing(
    finished: Path, hub: HubServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["publish", str(finished), "me/reviews", "--dry-run"]) == 0
    out = capsys.readouterr().out
    size = (finished / "model" / "adapter_model.safetensors").stat().st_size
    assert f"{size:,}  adapter_model.safetensors" in out
    assert "## Scores on the test split" in out
    assert hub.requests == []


def test_a_model_of_an_earlier_version_gets_its_card(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = shutil.copytree(finished, tmp_path / "old")
    (old / "tags.json").unlink()
    (old / "model" / "README.md").write_text("# Model Card\n[More Information Needed]\n")
    assert main(["publish", str(old), "me/reviews", "--dry-run"]) == 0
    assert "## Scores on the test split" in capsys.readouterr().out
    alone = shutil.copytree(old / "model", tmp_path / "alone" / "model")
    (alone / "README.md").unlink()
    assert main(["publish", str(alone), "me/reviews"]) == 1
    assert "has no README.md" in capsys.readouterr().err


def test_what_cannot_be_published(
    finished: Path, hub: HubServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    unfinished = shutil.copytree(finished, tmp_path / "unfinished")
    (unfinished / UNFINISHED).write_text("{}")
    (tmp_path / "empty").mkdir()
    for model, name, message in (
        (unfinished, "me/reviews", "the run is not finished"),
        (tmp_path / "empty", "me/reviews", "there is no model"),
        ("0123456789abcdef", "me/reviews", "the MLflow store does not exist"),
        (finished, "reviews", "is not the name of a repository"),
    ):
        assert main(["publish", str(model), name]) == 1
        assert message in capsys.readouterr().err
    assert hub.requests == []
