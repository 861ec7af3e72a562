"""Check what each budget counts, when it ends a run, and how it sets the learning rate."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from composing import change_config
from hydra.utils import instantiate
from networks import make
from quick import quick
from torch import Tensor, nn

from kinopoisk_ft.errors import UserError
from kinopoisk_ft.reporting.run_rows import BUDGET, Row
from kinopoisk_ft.training.batching import Examples
from kinopoisk_ft.training.budget import Budget
from kinopoisk_ft.training.clock import Clock
from kinopoisk_ft.training.loop import Trainer
from kinopoisk_ft.training.objective import Batch, Classification
from kinopoisk_ft.training.state import State

REVIEWS = 64


class FakeTime:
    """A clock with fake seconds, which pass only if a test advances it."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


class Timed(Classification):
    """An objective that takes a fake second per training batch and an hour per evaluation batch."""

    def __init__(self, pad_id: int, time: FakeTime) -> None:
        super().__init__(pad_id)
        self.time = time

    def loss_sum(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        self.time.seconds += 1 if model.training else 3600
        return super().loss_sum(model, batch)


class Recorder:
    """A recorder of learning rates and of the steps of evaluations."""

    def __init__(self) -> None:
        self.lr: dict[int, float] = {}
        self.evaluated: list[int] = []

    def metrics(self, values: dict[str, float], step: int) -> None:
        if "lr" in values:
            self.lr[step] = values["lr"]
        if "val_loss" in values:
            self.evaluated.append(step)


def trainer(*overrides: str) -> Trainer:
    base = ["model=bert_scratch", "trainer.precision=fp32", "trainer.device=cpu"]
    base += ["trainer.batch_size=8", "trainer.log_every=1", "trainer.lr=1.0", "model.head_lr=null"]
    made: Trainer = instantiate(change_config([*base, *overrides]).trainer)
    return made


def fit(folder: Path, *overrides: str) -> tuple[State, Recorder, Clock, Examples]:
    made, time, recorder = trainer(*overrides), FakeTime(), Recorder()
    precision, _ = made.open()
    clock = Clock(now=time)
    _, _, network, tokenizer = make("bert_scratch", "none", "model.dropout=0.0")
    texts, labels = tiny.reviews(REVIEWS)
    examples = Examples(tokenizer(texts)["input_ids"], np.array(labels))
    state = made.fit(
        network.module, Timed(tokenizer.pad_token_id, time), examples, examples,
        fresh=network.fresh, audit=lambda _: None, precision=precision, clock=clock,
        recorder=recorder, folder=folder,
    )  # fmt: skip
    return state, recorder, clock, examples


def test_steps_go_on_beyond_the_epochs(tmp_path: Path) -> None:
    state, recorder, _, _ = fit(tmp_path, "trainer.budget=steps:11", "trainer.epochs=1")
    assert state.step == 11
    assert recorder.evaluated == [8, 11]
    assert recorder.lr[11] == 0.0


def test_epochs_as_a_budget_are_the_epochs(tmp_path: Path) -> None:
    budget, _, _, _ = fit(tmp_path / "budget", "trainer.budget=epochs:2")
    epochs, _, _, _ = fit(tmp_path / "epochs", "trainer.epochs=2")
    assert budget.step == epochs.step == 16
    ours, theirs = budget.model.state_dict(), epochs.model.state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_seconds_are_those_of_training_alone(tmp_path: Path) -> None:
    """Ten steps take a second each, and the evaluations between them hours."""
    state, recorder, clock, _ = fit(tmp_path, "trainer.budget=seconds:10", "trainer.eval_every=4")
    assert state.step == clock.seconds["train"] == 10
    assert clock.seconds["val"] > 3600
    assert recorder.evaluated == [4, 8, 10]


def test_seconds_do_not_include_the_fit_of_the_output_layer(tmp_path: Path) -> None:
    """Its passes over the train split take hours."""
    state, _, clock, _ = fit(tmp_path, "trainer.budget=seconds:10", "trainer.head_first=true")
    assert state.step == clock.seconds["train"] == 10
    assert clock.seconds["head"] > 3600


def test_a_budget_that_ends_within_a_step_is_used_up_by_it(tmp_path: Path) -> None:
    state, _, clock, _ = fit(tmp_path, "trainer.budget=seconds:2.5")
    assert state.step == clock.seconds["train"] == 3


def test_tokens_are_the_real_ones_of_training(tmp_path: Path) -> None:
    state, recorder, _, examples = fit(tmp_path, "trainer.budget=tokens:1500")
    longest = 8 * int(examples.lengths.max())
    assert 1500 <= state.tokens < 1500 + longest
    assert recorder.evaluated[-1] == state.step
    one_epoch, _, _, _ = fit(tmp_path, f"trainer.budget=tokens:{examples.lengths.sum()}")
    assert one_epoch.step == 8


@pytest.mark.parametrize("schedule", quick(["linear", "cosine"], 1))
def test_learning_rate_follows_the_share_of_the_budget(tmp_path: Path, schedule: str) -> None:
    """The schedule of twenty steps of one second each equals the schedule of twenty steps."""
    how = [f"trainer/schedule={schedule}", "trainer.warmup_share=0.2"]
    _, seconds, _, _ = fit(tmp_path / "a", "trainer.budget=seconds:20", *how)
    _, steps, _, _ = fit(tmp_path / "b", "trainer.budget=steps:20", *how)
    assert steps.lr[4] == 1.0
    assert seconds.lr == pytest.approx(steps.lr, abs=1e-9)


@pytest.mark.parametrize(
    "text",
    ["10", "hours:3", "epochs", "epochs:0", "epochs:1.5", "seconds:-1", "seconds:nan", "tokens:x",
     "seconds:inf", "steps:", ":5", ""],
)  # fmt: skip
def test_malformed_budgets_raise_with_valid_examples(text: str) -> None:
    with pytest.raises(UserError, match="epochs:3, steps:500, tokens:2000000 or seconds:600"):
        Budget.parse(text)


def test_two_limits_are_refused() -> None:
    with pytest.raises(Exception, match=r"trainer\.max_steps=null trainer\.budget=steps:5"):
        trainer("trainer.budget=seconds:10", "trainer.max_steps=5")


def test_warmup_in_steps_needs_steps() -> None:
    trainer("trainer.budget=steps:10", "trainer.warmup_steps=2")
    with pytest.raises(Exception, match="warmup_share"):
        trainer("trainer.budget=tokens:10", "trainer.warmup_steps=2")


def test_reports_compare_the_budget_that_counted() -> None:
    def differing(**settings: str) -> dict[str, str]:
        named = {f"trainer.{key}": value for key, value in settings.items()}
        row: Any = SimpleNamespace(setting=lambda key: named.get(key, ""))
        return {key: found for key in BUDGET if (found := Row.compared(row, key))}

    assert differing(epochs="3") == {"trainer.epochs": "3"}
    assert differing(epochs="3", budget="steps:9") == differing(epochs="1", budget="steps:9")
    assert differing(epochs="3", max_steps="5", budget="steps:9") == {"trainer.budget": "steps:9"}
    assert differing(batch_size="8", accumulate="2") == differing(batch_size="16", accumulate="1")
