"""Check the schedules against those of `transformers`."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import (
    get_constant_schedule_with_warmup,
    get_cosine_schedule_with_warmup,
    get_linear_schedule_with_warmup,
)

from kinopoisk_ft.training import schedule


@pytest.mark.parametrize("warmup", [0, 5, 40])
def test_schedules_equal_transformers(warmup: int) -> None:
    for ours, theirs in (
        (schedule.linear, lambda one: get_linear_schedule_with_warmup(one, warmup, 40)),
        (schedule.cosine, lambda one: get_cosine_schedule_with_warmup(one, warmup, 40)),
        (schedule.constant, lambda one: get_constant_schedule_with_warmup(one, warmup)),
    ):
        optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=1.0)
        reference = theirs(optimizer)
        for step in range(40):
            assert ours(step, warmup=warmup, total=40) == pytest.approx(reference.get_last_lr()[0])
            optimizer.step()
            reference.step()
