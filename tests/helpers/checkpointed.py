"""Train a tiny network for ten steps, with checkpoints."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import short_fit
import tiny
import torch
from composing import change_config
from hydra.utils import instantiate
from networks import make
from torch import nn

from kinopoisk_ft.training.batching import Examples
from kinopoisk_ft.training.checkpoint.best import trained_tensors
from kinopoisk_ft.training.checkpoint.folder import CheckpointFolder
from kinopoisk_ft.training.objective import Classification
from kinopoisk_ft.training.state import State

SMALL = [
    "model=bert_scratch", "trainer.precision=fp32", "trainer.device=cpu", "trainer.batch_size=8",
    "trainer.epochs=2", "trainer.lr=0.01", "trainer.checkpoint_every=2", "trainer.eval_every=3",
]  # fmt: skip


class Recorder(short_fit.Recorder):
    """A recorder that counts the calls of `flush`."""

    flushed = 0

    def flush(self) -> None:
        self.flushed += 1


def fit(
    folder: Path,
    *overrides: str,
    recorder: Recorder | None = None,
    about: dict[str, str] | None = None,
    prepare: Callable[[nn.Module], None] = lambda _: None,
    adapter: str = "none",
) -> State:
    cfg = change_config([*SMALL, "trainer.log_every=1", *overrides])
    trainer = instantiate(cfg.trainer)
    precision, clock = trainer.open(folder)
    # As in a run, some time has passed before training.
    with clock.section("tokenize"):
        pass
    _, made, network, tokenizer = make("bert_scratch", adapter)
    adapted = made.apply(network)
    prepare(adapted.module)
    data = []
    for count, seed in ((40, 0), (8, 1)):
        texts, labels = tiny.reviews(count, seed)
        data.append(Examples(tokenizer(texts)["input_ids"], np.array(labels)))
    found: State = trainer.fit(
        adapted.module, Classification(tokenizer.pad_token_id), *data, fresh=adapted.fresh,
        audit=lambda _: None, precision=precision, clock=clock, recorder=recorder or Recorder(),
        folder=folder, about={"data": "tiny"} if about is None else about,
    )  # fmt: skip
    return found


def weights(state: State) -> torch.Tensor:
    return torch.cat([value.flatten() for value in trained_tensors(state.model).values()])


def steps(folder: Path) -> list[int]:
    found = CheckpointFolder(folder).folders()
    return [json.loads((f / "state.json").read_text())["state"]["step"] for f in found]
