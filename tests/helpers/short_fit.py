"""Train a tiny network for a few steps, with a recorder of all metrics."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tiny
import torch
from composing import change_config
from hydra.utils import instantiate
from networks import make
from torch import Tensor, nn

from kinopoisk_ft.training.batching import Examples
from kinopoisk_ft.training.checkpoint.best import trained_tensors
from kinopoisk_ft.training.loop import Trainer
from kinopoisk_ft.training.objective import Classification
from kinopoisk_ft.training.state import State

SHORT = [
    "model=bert_scratch", "trainer.precision=fp32", "trainer.device=cpu", "trainer.batch_size=12",
    "trainer.epochs=1", "trainer.lr=0.001", "trainer.log_every=1", "trainer.checkpoint_every=2",
]  # fmt: skip


class Recorder:
    """A recorder of all metrics, which calls `at` with each step."""

    def __init__(self, at: Callable[[int], None] = lambda _: None) -> None:
        self.values: dict[tuple[int, str], float] = {}
        self.at = at

    def metrics(self, values: dict[str, float], step: int) -> None:
        self.values |= {(step, key): value for key, value in values.items()}
        self.at(step)

    def flush(self) -> None:
        """Do nothing, because nothing is buffered."""

    def of(self, name: str) -> list[float]:
        """Return a metric's values by step."""
        return [value for (_, key), value in self.values.items() if key == name]


def examples(tokenizer: Any, count: int, seed: int) -> Examples:
    texts, labels = tiny.reviews(count, seed)
    return Examples(tokenizer(texts)["input_ids"], np.array(labels))


def train_examples(tokenizer: Any) -> Examples:
    """Return the training data of `short_fit`."""
    return examples(tokenizer, 46, 0)


def short_fit(
    folder: Path,
    *overrides: str,
    kind: str = "bert_scratch",
    dropout: float = 0.0,
    prepare: Callable[[nn.Module], None] = lambda _: None,
    class_weights: Tensor | None = None,
    recorder: Recorder | None = None,
) -> tuple[State, Recorder]:
    """Train for 4 steps, on 46 reviews in batches of 12; the last batch is smaller."""
    trainer: Trainer = instantiate(change_config([*SHORT, *overrides]).trainer)
    precision, clock = trainer.open(folder)
    # Mamba has no dropout.
    drops = [f"model.dropout={dropout}"] if "bert" in kind else []
    drops += [override for override in overrides if override.startswith("model.")]
    _, _, network, tokenizer = make(kind, "none", *drops)
    prepare(network.module)
    recorder = recorder or Recorder()
    objective = Classification(tokenizer.pad_token_id, weights=class_weights, loss=trainer.loss)
    state = trainer.fit(
        network.module, objective,
        train_examples(tokenizer), examples(tokenizer, 9, 1), fresh=network.fresh,
        audit=lambda _: None, precision=precision, clock=clock, recorder=recorder, folder=folder,
        about={"data": "tiny"},
    )  # fmt: skip
    return state, recorder


def weights(state: State) -> Tensor:
    """Return all trained weights and buffers as one vector."""
    return torch.cat([value.flatten() for value in trained_tensors(state.model).values()])
