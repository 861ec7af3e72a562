"""Check the schedules against those of `transformers`."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import get_cosine_schedule_with_warmup, get_linear_schedule_with_warmup

from kinopoisk_ft.training import schedule


def test_schedules_equal_transformers() -> None:
    for ours, theirs in (
        (schedule.linear, get_linear_schedule_with_warmup),
        (schedule.cosine, get_cosine_schedule_with_warmup),
    ):
        optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=1.0)
        reference = theirs(optimizer, 5, 40)
        for step in range(40):
            assert ours(step, warmup=5, total=40) == pytest.approx(reference.get_last_lr()[0])
            optimizer.step()
            reference.step()
