"""Test that evaluations and predictions are repeatable, and what an evaluation refuses."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from networks import make
from torch import Tensor, nn

from kinopoisk_ft.errors import UserError
from kinopoisk_ft.training.batching import Examples
from kinopoisk_ft.training.evaluate import evaluate, predict
from kinopoisk_ft.training.objective import Classification, MaskedLanguageModel
from kinopoisk_ft.training.precision import Precision

FP32 = Precision("fp32", torch.device("cpu"))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_outputs_that_are_not_finite_are_refused(value: float) -> None:
    """A single review suffices, because argmax would count it as one of the first class."""
    _, _, network, tokenizer = make("bert_scratch")
    texts, labels = tiny.reviews(6)
    data = Examples(tokenizer(texts)["input_ids"], np.array(labels))

    def overflow(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        output[0] = value

    network.module.get_submodule("classifier").register_forward_hook(overflow)
    objective = Classification(tokenizer.pad_token_id)
    with pytest.raises(UserError, match=r"in fp32(?s:.*)trainer\.precision=fp32"):
        evaluate(network.module, data, objective, FP32, 8)


def test_a_model_in_training_mode_is_evaluated_without_dropout() -> None:
    _, _, network, tokenizer = make("bert_scratch", "none", "model.dropout=0.5")
    texts, labels = tiny.reviews(6)
    data = Examples(tokenizer(texts)["input_ids"], np.array(labels))
    objective = Classification(tokenizer.pad_token_id)
    with torch.no_grad():
        expected = network.module.eval()(**data.pad(range(6), tokenizer.pad_token_id)).logits
    for found in (
        evaluate(network.module.train(), data, objective, FP32, 8).outputs,
        predict(network.module.train(), data, objective, FP32, 8),
    ):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_each_evaluation_masks_the_same_tokens() -> None:
    """Otherwise, the validation losses of two epochs could not be compared."""

    class Copies(nn.Module):
        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
            return SimpleNamespace(logits=nn.functional.one_hot(input_ids, 50).float())

    data = Examples(np.random.default_rng(0).integers(5, 50, (9, 40)).tolist())
    objective = MaskedLanguageModel(0, 4, 50, range(5), 0.15)
    first, second = (evaluate(Copies(), data, objective, FP32, 4).scores for _ in range(2))
    assert first == second
