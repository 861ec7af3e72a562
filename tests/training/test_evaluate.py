"""Test what an evaluation refuses."""

from __future__ import annotations

import math

import numpy as np
import pytest
import tiny
import torch
from networks import make
from torch import nn

from kinopoisk_ft.errors import UserError
from kinopoisk_ft.training.batching import Examples
from kinopoisk_ft.training.evaluate import evaluate
from kinopoisk_ft.training.objective import Classification
from kinopoisk_ft.training.precision import Precision


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_outputs_that_are_not_finite_are_refused(value: float) -> None:
    """A single review suffices, because argmax would count it as one of the first class."""
    _, _, network, tokenizer = make("bert_scratch")
    texts, labels = tiny.reviews(6)
    data = Examples(tokenizer(texts)["input_ids"], np.array(labels))

    def overflow(_: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        output[0] = value

    network.module.get_submodule("classifier").register_forward_hook(overflow)
    objective = Classification(tokenizer.pad_token_id)
    fp32 = Precision("fp32", torch.device("cpu"))
    with pytest.raises(UserError, match=r"in fp32(?s:.*)trainer\.precision=fp32"):
        evaluate(network.module, data, objective, fp32, 8)
