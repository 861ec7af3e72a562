"""Test that options which a model does not support are refused before data are read."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
from composing import compose_config
from networks import model_overrides

from kinopoisk_ft.errors import UserError
from kinopoisk_ft.tasks.finetune import finetune
from kinopoisk_ft.tracking.base import Tracker


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            [*model_overrides("bert"), "adapter=freeze", "adapter.layers=9"],
            "cannot freeze 9 layers",
        ),
        ([*model_overrides("mamba2"), "trainer.prefix_cache=fp16"], "no layer can be cached"),
        (["model=encoder", f"model.name={tiny.mamba()}"], "does not support"),
        (["model=tfidf", "adapter=lora"], "has no layers to adapt"),
        (["model=bert_scratch"], "the file does not exist"),
    ],
)
def test_data_are_read_last(overrides: list[str], message: str) -> None:
    cfg = compose_config([*overrides, "data=file", "data.path=missing.csv"])
    with pytest.raises(UserError, match=message):
        finetune(cfg, Tracker(uri=None, experiment=""), "", Path("unused"))
