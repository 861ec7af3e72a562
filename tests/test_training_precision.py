"""Precision and device: what is chosen, what is refused, and a step that overflows."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from kinopoisk_ft.errors import UserError
from kinopoisk_ft.training.device import choose_device
from kinopoisk_ft.training.precision import OVERFLOW, Precision, choose

CPU = torch.device("cpu")


def test_fp16_skips_a_step_that_overflows() -> None:
    precision = Precision("fp16", CPU)
    weight = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    precision.backward((weight * torch.tensor([1.0, float("inf")])).sum())
    precision.unscale(optimizer)
    assert precision.step(optimizer, [weight], 1.0, torch.tensor(1.0)) == OVERFLOW
    assert torch.equal(weight, torch.ones(2))


@pytest.mark.parametrize(("faster", "kind"), [(4.0, "bf16"), (0.125, "fp32"), (1.2, "fp32")])
def test_auto_precision_follows_the_measurement(
    monkeypatch: pytest.MonkeyPatch, faster: float, kind: str
) -> None:
    seconds = {torch.float32: 1.0, torch.bfloat16: 1 / faster}
    monkeypatch.setattr(
        "kinopoisk_ft.training.precision._product_seconds", lambda dtype, device: seconds[dtype]
    )
    chosen, reason = choose("auto", CPU)
    assert chosen == kind
    assert "of fp32's time" in reason


def test_precision_that_cannot_run_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_kernel(*args: object, **kwargs: object) -> None:
        raise RuntimeError("no kernel for Half")

    monkeypatch.setattr(torch, "autocast", no_kernel)
    with pytest.raises(UserError, match="fp16 cannot run on cpu: no kernel for Half"):
        choose("fp16", CPU)


def test_missing_device_is_refused() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    with pytest.raises(UserError, match="available: cpu"):
        choose_device("cuda")
