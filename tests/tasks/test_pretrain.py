"""Test that options which pretraining does not support are refused before data are read."""

from __future__ import annotations

from pathlib import Path

import pytest
from composing import compose_config

from kinopoisk_ft.errors import UserError
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
