"""Compare class weights and balanced sampling with torch, scikit-learn and counts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from composing import change_config, compose_config, plain
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from hypothesis import given
from hypothesis import strategies as st
from networks import make
from sklearn.metrics import log_loss
from sklearn.utils.class_weight import compute_sample_weight
from torch import nn

from kinopoisk_ft.config.validate import find_errors
from kinopoisk_ft.errors import UserError
from kinopoisk_ft.training.batching import Examples, draw_balanced_rows
from kinopoisk_ft.training.evaluate import evaluate
from kinopoisk_ft.training.loop import Trainer, training_batches
from kinopoisk_ft.training.objective import Classification, compute_balanced_weights
from kinopoisk_ft.training.precision import Precision

CPU = torch.device("cpu")
LABELS = np.array([0] * 3 + [1] * 19)


def trainer(*overrides: str) -> Trainer:
    base = ["model=bert_scratch", "trainer.precision=fp32", "trainer.device=cpu"]
    made: Trainer = instantiate(change_config([*base, *overrides]).trainer)
    return made


def examples(tokenizer: Any) -> Examples:
    return Examples(tokenizer(tiny.reviews(len(LABELS))[0])["input_ids"], LABELS)


def test_weights_are_scikit_learns() -> None:
    weights = compute_balanced_weights(LABELS, 2)
    np.testing.assert_allclose(
        weights[LABELS], compute_sample_weight("balanced", LABELS), rtol=1e-6
    )
    # If the classes are balanced, all weights are 1.
    assert torch.equal(compute_balanced_weights(np.array([0, 1, 2]), 3), torch.ones(3))


@pytest.mark.parametrize("sizes", [[22], [4, 4, 4, 4, 4, 2], [1] * 22])
def test_accumulated_class_weights_equal_torch_on_the_batch(sizes: list[int]) -> None:
    """Micro-batches of any size, some with a single class, give torch's loss and gradients."""
    made = trainer("trainer.clip_norm=null", "trainer.lr=0.0")
    precision, clock = made.open()
    _, _, network, tokenizer = make("bert_scratch", "none", "model.dropout=0.0")
    data, weights = examples(tokenizer), compute_balanced_weights(LABELS, 2)
    objective = Classification(tokenizer.pad_token_id, weights=weights)
    state = made._setup(network.module, objective, precision, (), 22, clock)
    rng = np.random.default_rng(0)
    rows = np.split(np.arange(22), np.cumsum(sizes)[:-1])
    kept: list[torch.Tensor] = []

    def keep(module: nn.Module) -> None:
        kept.extend(p.grad.clone() for p in module.parameters() if p.grad is not None)

    made._step(state, [objective.collate(data, part, rng) for part in rows], keep)
    batch = objective.collate(data, np.arange(22), rng)
    labels = batch.pop("labels")
    network.module.zero_grad()
    loss = nn.functional.cross_entropy(network.module(**batch).logits, labels, weights)
    loss.backward()
    torch.testing.assert_close(state.losses[0], loss.detach(), atol=1e-5, rtol=1e-5)
    expected = [p.grad for p in network.module.parameters() if p.grad is not None]
    for ours, theirs in zip(kept, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-3)


def test_evaluation_is_weighted_as_the_objective_is() -> None:
    _, _, network, tokenizer = make("bert_scratch")
    data, weights = examples(tokenizer), compute_balanced_weights(LABELS, 2)
    for given_weights in (None, weights):
        objective = Classification(tokenizer.pad_token_id, weights=given_weights)
        found = evaluate(network.module, data, objective, Precision("fp32", CPU), 4)
        probabilities = torch.softmax(found.outputs.double(), 1).numpy()
        sample_weight = None if given_weights is None else weights[LABELS].numpy()
        expected = log_loss(LABELS, probabilities, sample_weight=sample_weight)
        assert found.scores["loss"] == pytest.approx(expected, abs=1e-5)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=200), st.integers(0, 9), st.integers(0, 3))
def test_balanced_draws(labels: list[int], seed: int, epoch: int) -> None:
    """N rows are drawn; counts of classes, and of rows within a class, differ by at most one."""
    array = np.array(labels)
    rows = draw_balanced_rows(array, seed, epoch)
    assert len(rows) == len(labels)
    by_class = np.bincount(array[rows])[np.unique(array)]
    assert by_class.max() - by_class.min() <= 1
    times = np.bincount(rows, minlength=len(labels))
    for label in set(labels):
        of_class = times[array == label]
        assert of_class.max() - of_class.min() <= 1


def test_draws_follow_seed_and_epoch() -> None:
    draws = [draw_balanced_rows(LABELS, seed, epoch).tolist() for seed, epoch in
             ((1, 0), (1, 0), (1, 1), (2, 0))]  # fmt: skip
    assert draws[0] == draws[1]
    assert draws[0] != draws[2] != draws[3] != draws[0]


@pytest.mark.parametrize(("sampling", "share"), [("shuffled", 3 / 22), ("balanced", 0.5)])
def test_epoch_follows_the_sampling_option(sampling: str, share: float) -> None:
    made = trainer(f"trainer.sampling={sampling}", "trainer.epochs=1", "trainer.batch_size=4")
    precision, clock = made.open()
    _, _, network, tokenizer = make("bert_scratch")
    objective = Classification(tokenizer.pad_token_id)
    state = made._setup(network.module, objective, precision, (), 22, clock)
    steps = list(training_batches(examples(tokenizer), state, made))
    labels = torch.cat([batch["labels"] for step in steps for batch in step])
    assert (len(steps), len(labels)) == (6, 22)
    assert (labels == 0).float().mean().item() == pytest.approx(share)


@pytest.mark.parametrize("key", ["class_weights", "sampling"])
def test_balance_that_nothing_would_heed_is_refused(key: str) -> None:
    with pytest.raises(UserError, match="have no effect, because pretraining has no classes"):
        trainer(f"trainer.{key}=balanced").reject_class_balancing("pretraining has no classes")
    trainer().reject_class_balancing("")
    cfg = plain(compose_config(["model=bert_scratch", f"trainer.{key}=balancd"]))
    assert any(f"trainer.{key}='balancd'" in error for error in find_errors(cfg))


def test_classes_are_not_balanced_twice() -> None:
    """Balanced batches with weights from the original frequencies would favour the rare class."""
    with pytest.raises(InstantiationException, match="rare classes too much weight"):
        trainer("trainer.class_weights=balanced", "trainer.sampling=balanced")


def test_weights_and_draws_help_a_rare_class(tmp_path: Path) -> None:
    """With one rare review in ten, plain training misses more of them than either option."""
    found = {}
    for name, option in (("none", "seed=42"), ("weights", "trainer.class_weights=balanced"),
                         ("draws", "trainer.sampling=balanced")):  # fmt: skip
        made = trainer(option, "trainer.epochs=2", "trainer.lr=0.003", "trainer.batch_size=8")
        precision, clock = made.open()
        _, _, network, tokenizer = make("bert_scratch", "none", "model.dropout=0.0")
        texts, labels = (np.array(column) for column in tiny.reviews(160))
        kept = np.flatnonzero((labels == 1) | (np.arange(160) % 20 == 0))
        train = Examples(tokenizer(texts[kept].tolist())["input_ids"], labels[kept])
        weights = compute_balanced_weights(labels[kept], 2) if name == "weights" else None
        objective = Classification(tokenizer.pad_token_id, weights=weights)
        made.fit(
            network.module, objective, train, train, fresh=(), audit=lambda _: None,
            precision=precision, clock=clock, recorder=NoRecorder(), folder=tmp_path / name,
        )  # fmt: skip
        outputs = made.test(network.module, objective, train, precision).outputs
        found[name] = float((outputs.argmax(1).numpy() == 0)[labels[kept] == 0].mean())
    assert found["none"] < min(found["weights"], found["draws"])


class NoRecorder:
    def metrics(self, values: dict[str, float], step: int) -> None:
        pass
