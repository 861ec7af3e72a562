"""Compare the losses with those of torch, and with formulas in float64."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from composing import compose_config, plain
from hydra.utils import instantiate
from quick import quick
from short_fit import short_fit, weights
from torch import Tensor
from torch.nn import functional

from kinopoisk_ft.config.validate import find_errors
from kinopoisk_ft.errors import UserError
from kinopoisk_ft.training.losses import IGNORED, cross_entropy, focal, label_smoothing
from kinopoisk_ft.training.objective import Classification, LanguageModel

WEIGHTS = [None, torch.tensor([0.3, 2.0, 1.1])]
NAMES = ["cross_entropy", "label_smoothing", "focal"]


def case(ignored: bool = False) -> tuple[Tensor, Tensor]:
    """Return logits (40, 3) that require gradients, and labels, some of which are ignored."""
    generator = torch.Generator().manual_seed(0)
    logits = (5 * torch.randn(40, 3, generator=generator)).requires_grad_()
    labels = torch.randint(0, 3, (40,), generator=generator)
    labels[::5] = IGNORED if ignored else labels[::5]
    return logits, labels


@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize("ignored", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
def test_sum_over_count_is_the_mean_of_torch(
    smoothing: float, ignored: bool, weight: Tensor | None
) -> None:
    logits, labels = case(ignored)
    loss = partial(label_smoothing, smoothing=smoothing) if smoothing else cross_entropy
    total, count = loss(logits, labels, weight)
    expected = functional.cross_entropy(logits, labels, weight, label_smoothing=smoothing)
    torch.testing.assert_close(total / count, expected)


@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize("ignored", [False, True])
@pytest.mark.parametrize("gamma", [1.0, 2.0, 3.5])
def test_focal_is_its_formula_in_float64(
    gamma: float, ignored: bool, weight: Tensor | None
) -> None:
    """Compare with torchvision's sigmoid_focal_loss for a softmax, and with derived gradients."""
    logits, labels = case(ignored)
    total, count = focal(logits, labels, weight, gamma=gamma)
    total.backward()
    scores, rows = logits.detach().double().numpy(), np.flatnonzero(labels != IGNORED)
    p = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    true = p[rows, labels[rows]]
    by_class = np.ones(3) if weight is None else weight.double().numpy()
    scale = by_class[labels[rows]]
    expected = (scale * (1 - true) ** gamma * -np.log(true)).sum()
    assert total.item() == pytest.approx(expected, rel=1e-5)
    assert float(count) == pytest.approx(scale.sum(), rel=1e-6)
    slope = gamma * (1 - true) ** (gamma - 1) * np.log(true) - (1 - true) ** gamma / true
    gradient = np.zeros_like(scores)
    for row, factor, q in zip(rows, scale * slope, true, strict=True):
        gradient[row] = factor * q * (np.eye(3)[labels[row]] - p[row])
    np.testing.assert_allclose(logits.grad, gradient, rtol=1e-3, atol=1e-5)


def test_focal_has_finite_gradients_where_the_model_is_certain() -> None:
    logits = torch.tensor([[80.0, -80.0], [-80.0, 80.0]], requires_grad=True)
    total, _ = focal(logits, torch.tensor([0, 0]), None, gamma=1.0)
    total.backward()
    assert torch.isfinite(logits.grad).all()  # type: ignore[arg-type]
    assert total.item() == pytest.approx(160)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("weight", quick([torch.tensor([0.5, 1.7]), None], 1))
def test_micro_batches_train_like_the_batch(
    name: str, weight: Tensor | None, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"class_weights": weight}
    loss = f"trainer/loss={name}"
    _, whole = short_fit(tmp_path / "whole", loss, **options)
    _, parts = short_fit(tmp_path / "parts", loss, "trainer.micro_batch_size=5", **options)
    np.testing.assert_allclose(parts.of("train_loss"), whole.of("train_loss"), atol=1e-6)
    np.testing.assert_allclose(parts.of("val_loss"), whole.of("val_loss"), atol=1e-6)


def test_each_loss_trains_differently(tmp_path: Path) -> None:
    found = [weights(short_fit(tmp_path / name, f"trainer/loss={name}")[0]) for name in NAMES]
    default = weights(short_fit(tmp_path / "default")[0])
    assert torch.equal(found[0], default)
    assert not torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_the_count_of_an_objective_is_that_of_its_loss() -> None:
    def halved(logits: Tensor, labels: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor]:
        return logits.sum(), torch.tensor(len(labels) / 2)

    batch = {"labels": torch.tensor([0, 2, 1])}
    assert Classification(0, loss=halved).count(batch) == 1.5
    assert Classification(0, weights=torch.tensor([1.0, 2.0, 4.0])).count(batch) == 7.0
    assert Classification(0).count(batch) == 3


def test_language_models_use_the_loss() -> None:
    logits, labels = torch.randn(2, 4, 7), torch.tensor([[1, 2, IGNORED, 3], [4, IGNORED, 5, 6]])

    class Model(torch.nn.Module):
        def forward(self, **_: Tensor) -> Any:
            return type("Output", (), {"logits": logits})

    batch = {"input_ids": labels, "attention_mask": labels, "labels": labels}
    objective = LanguageModel(0, partial(label_smoothing, smoothing=0.2))
    found = objective.loss_sum(Model(), batch)[0] / objective.count(batch)
    expected = functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), label_smoothing=0.2)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("trainer.loss.smoothing=1.5", "must be between 0.0 and 1.0"),
        ("trainer.loss.gamma=0.5", "must be 1 or more"),
        ("trainer.loss._target_=torch.optim.AdamW", "function failed"),
    ],
)
def test_a_loss_that_cannot_be_used_is_refused(override: str, reason: str) -> None:
    name = "focal" if "gamma" in override else "label_smoothing"
    with pytest.raises(Exception, match=f"loss function failed|{reason}") as refused:
        instantiate(compose_config([f"trainer/loss={name}", override]).trainer)
    assert isinstance(refused.value.__cause__ or refused.value, UserError)


def test_options_of_a_loss_are_checked() -> None:
    cfg = plain(
        compose_config(["model=bert_scratch", "trainer/loss=focal", "+trainer.loss.gama=1"])
    )
    assert any("'trainer.loss.gama'" in error for error in find_errors(cfg))
