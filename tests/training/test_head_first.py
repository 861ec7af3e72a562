"""Check that the output layer is fitted before training, and that rates decay with depth."""

from __future__ import annotations

import math
from pathlib import Path

import architectures
import numpy as np
import pytest
import torch
from composing import change_config, compose_config
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from networks import make
from short_fit import SHORT, short_fit, train_examples
from sklearn.linear_model import LogisticRegression
from torch import nn

from kinopoisk_ft.adapters.audit import count_depths
from kinopoisk_ft.errors import UserError
from kinopoisk_ft.training import loop
from kinopoisk_ft.training.batching import Examples
from kinopoisk_ft.training.head_first import _as_linear, find_output_layer, fit_head
from kinopoisk_ft.training.loop import Trainer
from kinopoisk_ft.training.objective import Classification
from kinopoisk_ft.training.optim import build_param_groups
from kinopoisk_ft.training.state import State


def prepare(kind: str, adapter: str, *overrides: str) -> tuple[State, Examples]:
    """Return the state before the first step, and the train split."""
    own = [override for override in overrides if not override.startswith("trainer.")]
    trainer_overrides = [override for override in overrides if override not in own]
    trainer: Trainer = instantiate(change_config([*SHORT, *trainer_overrides]).trainer)
    precision, clock = trainer.open()
    _, made, network, tokenizer = make(kind, adapter, "+model.reads_windows=false", *own)
    adapted = made.apply(network)
    objective, train = Classification(tokenizer.pad_token_id), train_examples(tokenizer)
    state = trainer._setup(
        adapted.module, objective, precision, adapted.fresh, len(train), clock, None
    )
    return state, train


@pytest.mark.parametrize(
    ("kind", "adapter", "name"),
    [
        ("pooled", "none", "classifier"),
        ("pooled", "lora", "base_model.model.classifier.modules_to_save.default"),
        ("bert", "freeze", "classifier"),
        ("mamba", "lora", "base_model.model.classifier.modules_to_save.default"),
    ],
)
def test_the_fitted_layer_predicts_as_scikit_learn(kind: str, adapter: str, name: str) -> None:
    """Both use the same features; the order of batches does not matter."""
    state, train = prepare(kind, adapter, "trainer.head_first=true")
    found, layer = find_output_layer(state.model)
    assert found == name
    before = {n: p.clone() for n, p in state.model.named_parameters()}
    inputs: list[torch.Tensor] = []
    hook = layer.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    batch = state.objective.collate(train, np.arange(len(train)), np.random.default_rng(0))
    with torch.no_grad():
        state.objective.loss_sum(state.model.eval(), batch)
    hook.remove()
    features = torch.cat(inputs).double().numpy()
    fit_head(state, train, balanced=False)
    assert state.model.training
    with torch.no_grad():
        logits = state.objective.loss_sum(state.model.eval(), batch)[1]
    mean, deviation = features.mean(0), features.std(0)
    oracle = LogisticRegression(max_iter=5000, tol=1e-8)
    expected = oracle.fit((features - mean) / deviation, train.labels).decision_function(
        (features - mean) / deviation
    )
    difference = (logits[:, 1] - logits[:, 0]).numpy()
    np.testing.assert_allclose(difference, expected, atol=0.02, rtol=0.02)
    changed = {n for n, p in state.model.named_parameters() if not torch.equal(p, before[n])}
    assert changed == {f"{name}.weight", f"{name}.bias"}


def test_several_classes_and_one_without_reviews() -> None:
    rng = np.random.default_rng(0)
    features, labels = rng.normal(size=(90, 4)), np.repeat([0, 1, 3], 30)
    features[np.arange(90), labels] += 2

    class Scaler:
        mean_, scale_ = np.array([1.0, 0.0, -1.0, 2.0]), np.array([2.0, 1.0, 0.5, 1.0])

    scaled = (features - Scaler.mean_) / Scaler.scale_
    regression = LogisticRegression().fit(scaled, labels)
    weight, bias = _as_linear(regression, Scaler, 4)
    logits = features @ weight.T + bias
    np.testing.assert_allclose(logits[:, [0, 1, 3]], regression.decision_function(scaled))
    assert (logits.argmax(1) != 2).all()


def test_a_fitted_head_uses_the_rate_of_the_other_weights(tmp_path: Path) -> None:
    rates = {}
    for first in ("true", "false"):
        state, _ = prepare("pooled", "none", f"trainer.head_first={first}", "trainer.head_lr=0.1")
        head = state.model.get_parameter("classifier.weight")
        for group in state.optimizer.param_groups:
            if any(parameter is head for parameter in group["params"]):
                rates[first] = group["initial_lr"]
    assert rates == {"true": 0.001, "false": 0.1}


def test_a_resumed_run_does_not_fit_the_head_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fitted: list[int] = []

    def count(state: State, train: Examples, balanced: bool) -> None:
        fitted.append(state.step)
        fit_head(state, train, balanced)

    monkeypatch.setattr(loop, "fit_head", count)
    short_fit(tmp_path, "trainer.head_first=true", "trainer.max_steps=2")
    assert fitted == [0]
    resumed, _ = short_fit(tmp_path, "trainer.head_first=true")
    assert resumed.step == 4
    assert fitted == [0]


@pytest.mark.parametrize(
    ("override", "expected"),
    [("trainer.sampling=shuffled", False), ("trainer.sampling=balanced", True),
     ("trainer.class_weights=balanced", True)],
)  # fmt: skip
def test_the_head_is_fitted_with_the_balance_of_the_training(
    override: str, expected: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[bool] = []
    monkeypatch.setattr(loop, "fit_head", lambda _, __, balanced: found.append(balanced))
    short_fit(tmp_path, "trainer.head_first=true", "trainer.max_steps=1", override)
    assert found == [expected]


def test_without_a_trained_linear_layer_it_is_refused() -> None:
    with pytest.raises(UserError, match="has no trainable linear layer"):
        find_output_layer(nn.Linear(2, 2).requires_grad_(False))


def test_a_layer_that_an_adapter_adds_after_the_head_is_not_fitted() -> None:
    """The prompt encoder of P-tuning ends in a linear layer."""
    removed = ("r", "lora_alpha", "lora_dropout", "bias", "target_modules")
    state, train = prepare(
        "bert", "lora", "trainer.head_first=true",
        "adapter.config._target_=peft.PromptEncoderConfig",
        *(f"~adapter.config.{key}" for key in removed),
        "+adapter.config.num_virtual_tokens=2", "+adapter.config.encoder_hidden_size=8",
    )  # fmt: skip
    assert isinstance([*state.model.modules()][-1], nn.Linear)
    assert find_output_layer(state.model)[0] == "base_model.classifier.modules_to_save.default"
    fit_head(state, train, balanced=False)


@pytest.mark.parametrize(
    ("adapter", "name"),
    [("none", "classifier.out_proj"), ("lora", "classifier.modules_to_save.default.out_proj")],
)
def test_a_head_that_comes_before_the_encoder_is_fitted(
    adapter: str, name: str, tmp_path: Path
) -> None:
    """XLM-RoBERTa defines its head first."""
    folder = architectures.checkpoint(tmp_path / "xlm_roberta", "XLMRoberta")
    own = [f"model.{key}={folder}" for key in ("name", "tokenizer")]
    state, train = prepare("bert", adapter, "trainer.head_first=true", *own)
    assert find_output_layer(state.model)[0].endswith(name)
    fit_head(state, train, balanced=False)


@pytest.mark.parametrize("adapter", ["none", "lora"])
def test_a_head_that_reads_each_token_is_refused(adapter: str, tmp_path: Path) -> None:
    """Decoders of transformers select the logits of the last token after their head."""
    folder = architectures.checkpoint(tmp_path / "llama", "Llama")
    own = [f"model.{key}={folder}" for key in ("name", "tokenizer")]
    state, train = prepare("bert", adapter, "trainer.head_first=true", *own)
    passes: list[None] = []
    state.model.register_forward_hook(lambda *_: passes.append(None))
    state.eval_batch_size = 4
    with pytest.raises(UserError, match=r"not the output of .*score.*\n.*\n.*pooling=mean or last"):
        fit_head(state, train, balanced=False)
    # The error comes before a pass over all reviews.
    assert len(passes) == 1
    state, train = prepare("bert", adapter, "trainer.head_first=true", *own, "model.pooling=last")
    fit_head(state, train, balanced=False)


def test_logits_that_are_not_finite_are_refused() -> None:
    state, train = prepare("bert", "none", "trainer.head_first=true")
    nn.init.constant_(find_output_layer(state.model)[1].bias, math.nan)
    with pytest.raises(UserError, match="logits are not finite in fp32"):
        fit_head(state, train, balanced=False)


@pytest.mark.parametrize(("kind", "adapter"), [("pooled", "none"), ("mamba", "lora")])
def test_rates_decay_with_depth(kind: str, adapter: str) -> None:
    """As in BEiT, the factor applies once to the last block, and once more per part below it."""
    _, made, network, _ = make(kind, adapter)
    adapted = made.apply(network)
    depths = count_depths(network, adapted.module)
    groups = build_param_groups(
        adapted.module, adapted.fresh, lr=1.0, head_lr=5.0, weight_decay=0.1, layer_decay=0.5,
        depths=depths,
    )  # fmt: skip
    names = {p: n for n, p in adapted.module.named_parameters()}
    rates = {names[p]: group["lr"] for group in groups for p in group["params"]}
    assert set(rates) == {n for n, p in adapted.module.named_parameters() if p.requires_grad}
    for name, rate in rates.items():
        place = next((i for i in range(3) if f".{i}." in name), None)
        if name in adapted.fresh:
            assert rate == 5.0
        elif "embeddings" in name:
            assert rate == 0.5**4
        elif place is not None:
            assert rate == 0.5 ** (3 - place)
        else:
            assert rate == 1.0
    plain = build_param_groups(
        adapted.module, adapted.fresh, lr=1.0, head_lr=5.0, weight_decay=0.1, depths=depths
    )
    assert {group["lr"] for group in plain} <= {1.0, 5.0}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["trainer.layer_decay=1.5"], r"trainer.layer_decay=1.5 is not valid"),
        (["trainer.min_steps=0"], r"trainer.min_steps cannot be 0"),
        (["trainer.min_steps=10", "trainer.max_steps=5"], r"contradicts trainer.max_steps=5"),
        (["trainer.min_steps=10", "trainer.budget=steps:9"], r"contradicts trainer.budget=steps:9"),
    ],
)
def test_invalid_values_are_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(InstantiationException, match=message):
        instantiate(compose_config([*SHORT, *overrides]).trainer)


def test_few_reviews_train_for_the_minimum_of_steps(tmp_path: Path) -> None:
    """46 reviews in batches of 12 give four steps per epoch."""
    assert short_fit(tmp_path / "a", "trainer.min_steps=7")[0].step == 7
    assert short_fit(tmp_path / "b", "trainer.min_steps=3")[0].step == 4
    state, _ = short_fit(tmp_path / "c", "trainer.min_steps=9", "trainer.max_steps=9")
    assert state.step == 9
