"""Check the choice of precision and device, rejected requests, and steps that overflow."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from gpu import ON_GPU, on_gpu
from short_fit import short_fit
from torch import nn

from kinopoisk_ft.errors import UserError
from kinopoisk_ft.training.device import choose_device
from kinopoisk_ft.training.precision import OVERFLOW, Precision, choose_precision

CPU = torch.device("cpu")


@pytest.mark.parametrize("device", ["cpu", ON_GPU])
def test_fp16_skips_a_step_that_overflows(device: str) -> None:
    precision = Precision("fp16", torch.device(device))
    weight = nn.Parameter(torch.ones(2, device=device))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    precision.backward((weight * torch.tensor([1.0, float("inf")], device=device)).sum())
    precision.unscale(optimizer)
    loss = torch.tensor(1.0, device=device)
    assert precision.step(optimizer, [weight], 1.0, loss) == OVERFLOW
    assert torch.equal(weight.cpu(), torch.ones(2))


@pytest.mark.parametrize("kind", ["fp32", "fp16"])
@pytest.mark.parametrize("fused", [False, True])
def test_a_step_with_an_infinite_loss_is_skipped(
    kind: Literal["fp32", "fp16"], fused: bool
) -> None:
    """A logit of minus infinity gives such a loss, but finite gradients."""
    precision, weight = Precision(kind, CPU), nn.Parameter(torch.ones(2))
    optimizer = torch.optim.AdamW([weight], fused=fused)
    precision.backward(weight.sum())
    precision.unscale(optimizer)
    assert precision.step(optimizer, [weight], 1.0, torch.tensor(float("inf"))) == 2
    assert torch.equal(weight, torch.ones(2))


@pytest.mark.parametrize("device", [ON_GPU])
def test_auto_precision_is_one_that_the_device_computes_in(device: str) -> None:
    kind, _ = choose_precision("auto", torch.device(device))
    if device == "cuda":
        assert (kind == "bf16") == torch.cuda.is_bf16_supported(including_emulation=False)
    assert Precision(kind, torch.device(device)).kind == kind


@pytest.mark.parametrize(("kind", "device"), [on_gpu("bf16"), on_gpu("fp16")])
@pytest.mark.parametrize("model", ["bert_scratch", "mamba_scratch"])
def test_half_precision_trains_like_fp32(
    model: str, kind: str, device: str, tmp_path: Path
) -> None:
    losses = []
    for precision in ("fp32", kind):
        options = (f"trainer.device={device}", f"trainer.precision={precision}")
        _, recorder = short_fit(tmp_path / precision, *options, kind=model)
        losses.append(recorder.of("train_loss") + recorder.of("val_loss"))
    assert losses[0] != losses[1]
    np.testing.assert_allclose(losses[1], losses[0], rtol=2e-2)


def pretend(monkeypatch: pytest.MonkeyPatch, amx: bool, avx512: bool) -> None:
    """Let PyTorch find a CPU with these instructions."""
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)


@pytest.mark.parametrize(
    ("amx", "avx512", "kind", "reason"),
    [
        (True, True, "bf16", "the CPU has AMX"),
        (False, True, "bf16", "the CPU has AVX512-BF16"),
        (False, False, "fp32", "the CPU has neither AMX nor AVX512-BF16"),
    ],
)
def test_auto_precision_follows_the_cpu(
    monkeypatch: pytest.MonkeyPatch, amx: bool, avx512: bool, kind: str, reason: str
) -> None:
    pretend(monkeypatch, amx, avx512)
    assert choose_precision("auto", CPU) == (kind, reason)


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="Linux tells flags there")
def test_auto_precision_follows_the_cpu_instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    flags = set(Path("/proc/cpuinfo").read_text().split())
    has = bool(flags & {"amx_tile", "avx512_bf16"}) and torch.backends.mkldnn.is_available()
    assert choose_precision("auto", CPU)[0] == ("bf16" if has else "fp32")


@pytest.mark.parametrize(
    ("limit", "kind"),
    [("avx2", "fp32"), ("AVX512_CORE_VNNI", "fp32"), ("AVX512_CORE_BF16", "bf16"), ("ALL", "bf16")],
)
def test_auto_precision_heeds_the_limit_of_onednn(
    monkeypatch: pytest.MonkeyPatch, limit: str, kind: str
) -> None:
    pretend(monkeypatch, amx=False, avx512=True)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    assert choose_precision("auto", CPU)[0] == kind


def test_auto_precision_needs_a_build_with_onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert choose_precision("auto", CPU) == ("fp32", "this build of PyTorch has no oneDNN")


@pytest.mark.parametrize(
    ("capability", "kind"), [((6, 1), "fp32"), ((7, 5), "fp16"), ((8, 0), "bf16"), ((9, 0), "bf16")]
)
def test_auto_precision_follows_the_gpu(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], kind: str
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr("kinopoisk_ft.training.precision._find_problem", lambda *_: None)
    chosen, reason = choose_precision("auto", torch.device("cuda"))
    assert chosen == kind
    assert f"{capability[0]}.{capability[1]}" in reason


def test_auto_precision_that_cannot_run_is_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr("kinopoisk_ft.training.precision._find_problem", lambda *_: "no kernel")
    reason = "bf16 does not work: no kernel"
    assert choose_precision("auto", torch.device("cuda")) == ("fp32", reason)


def test_precision_that_cannot_run_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_kernel(*args: object, **kwargs: object) -> None:
        raise RuntimeError("no kernel for Half")

    monkeypatch.setattr(torch, "autocast", no_kernel)
    with pytest.raises(UserError, match="fp16 does not work on cpu: no kernel for Half"):
        choose_precision("fp16", CPU)


def test_missing_device_is_refused() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    with pytest.raises(UserError, match="that are available: cpu"):
        choose_device("cuda")
