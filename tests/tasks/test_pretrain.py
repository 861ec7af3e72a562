"""Test that options which pretraining does not support are refused before data are read."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from composing import compose_config

from kinopoisk_ft.errors import UserError
from kinopoisk_ft.tasks import pretrain as task
from kinopoisk_ft.tasks.pretrain import pretrain
from kinopoisk_ft.tracking.base import Tracker


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["trainer.best_metric=f1_weighted"], "it cannot compute f1_weighted"),
        (["adapter=lora"], "it cannot use an adapter"),
        (["adapter=head"], "it cannot use an adapter"),
        (["trainer.best_metric=loss"], "the file does not exist"),
    ],
)
def test_data_are_read_last(overrides: list[str], message: str) -> None:
    cfg = compose_config(["model=bert_scratch", "data=file", "data.path=missing.csv", *overrides])
    with pytest.raises(UserError, match=message):
        pretrain(cfg, Tracker(uri=None, experiment=""), "", Path(), mask_share=0.15, save_to="base")


@pytest.mark.parametrize("has_model", [True, False])
def test_only_an_earlier_model_is_replaced(
    has_model: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["other.safetensors", *(["config.json"] if has_model else [])]
    for name in names:
        (tmp_path / name).touch()
    (tmp_path / "folder.model").mkdir()

    def save(network: object, tokenizer: object, folder: Path) -> None:
        (folder / "config.json").write_text("{}")

    monkeypatch.setattr(task, "save_language_model", save)
    texts = SimpleNamespace(train={"text": []}, val={"text": []})
    task._save_base(SimpleNamespace(base=None), None, texts, tmp_path)
    assert (tmp_path / "other.safetensors").exists() != has_model
    assert (tmp_path / "folder.model").is_dir()
    assert (tmp_path / "config.json").read_text() == "{}"
