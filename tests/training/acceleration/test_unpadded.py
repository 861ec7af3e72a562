"""Check attention without padding, with a fake GPU kernel."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any, cast

import pytest
import stand_ins
import torch
from gpu import ON_GPU, require_package
from networks import make
from torch import Tensor, nn

from kinopoisk_ft.ops import gpu_package
from kinopoisk_ft.ops.attention.cuda import PACKAGE, RealTokens, attention_unpadded
from kinopoisk_ft.training.acceleration import unpadded
from kinopoisk_ft.training.acceleration.dropout import replace_dropout
from kinopoisk_ft.training.acceleration.unpadded import use_unpadded_attention
from kinopoisk_ft.training.precision import Precision


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def on(device: str, kind: str) -> Precision:
    """Return a precision for a device that this machine may not have."""
    return cast(Precision, SimpleNamespace(device=torch.device(device), kind=kind))


def encoder(adapter: str) -> nn.Module:
    _, made, network, _ = make("bert", adapter)
    module: nn.Module = made.apply(network).module
    return module.eval()


def padded() -> dict[str, Tensor]:
    lengths = torch.tensor([12, 7, 1])
    mask = (torch.arange(12) < lengths[:, None]).long()
    return {"input_ids": torch.randint(5, 60, (3, 12)), "attention_mask": mask}


def answer(module: nn.Module, inputs: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    with torch.autocast(inputs["input_ids"].device.type, torch.bfloat16):
        logits: Tensor = module(**inputs).logits
    trained = {n: p for n, p in module.named_parameters() if p.requires_grad}
    grads = torch.autograd.grad(logits.float().square().sum(), list(trained.values()))
    return logits.detach().float(), dict(zip(trained, grads, strict=True))


@pytest.mark.parametrize("device", ["cpu", ON_GPU])
@pytest.mark.parametrize("adapter", ["none", "lora"])
def test_logits_and_gradients_are_those_of_sdpa(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, adapter: str, device: str
) -> None:
    require_package(PACKAGE, device, monkeypatch, stand_ins.flash_attn)
    monkeypatch.setattr(gpu_package, "find_problem", lambda package, device: None)
    module = encoder(adapter).to(device)
    inputs = {name: x.to(device) for name, x in padded().items()}
    want, want_grads = answer(module, inputs)
    tokens: list[int] = []
    found = RealTokens.from_mask
    monkeypatch.setattr(
        RealTokens, "from_mask", lambda mask: (tokens.append(int(mask.sum())), found(mask))[1]
    )
    with caplog.at_level(logging.DEBUG), use_unpadded_attention(module, on("cuda", "bf16")):
        got, grads = answer(module, inputs)
    # The mask is read once for all layers.
    assert tokens == [20]
    assert "attention uses flash-attn without padding" in caplog.text
    torch.testing.assert_close(got, want, rtol=2e-2, atol=2e-2)
    for name, grad in grads.items():
        torch.testing.assert_close(
            grad, want_grads[name], rtol=0.1, atol=0.02 * float(want_grads[name].abs().max()) + 1e-6
        )
    # Afterwards, attention uses SDPA again.
    repeated = 0 if device == "cpu" else 1e-3
    torch.testing.assert_close(answer(module, inputs)[0], want, rtol=0, atol=repeated)
    assert tokens == [20]


@pytest.mark.parametrize("device", ["cpu", ON_GPU])
def test_the_first_token_alone_asks(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    require_package(PACKAGE, device, monkeypatch, stand_ins.flash_attn)
    q, k, v = (torch.randn(3, 2, 9, 16, device=device).bfloat16() for _ in "qkv")
    mask = (torch.arange(9) < torch.tensor([9, 4, 1])[:, None]).to(device)
    whole = nn.functional.scaled_dot_product_attention(q, k, v, mask[:, None, None])
    got = attention_unpadded(q[:, :, :1], k, v, RealTokens.from_mask(mask))
    torch.testing.assert_close(got.transpose(1, 2), whole[:, :, :1], rtol=2e-2, atol=2e-2)


def test_rows_without_pads_need_no_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_package, "find_problem", lambda package, device: None)
    module, inputs = encoder("none"), padded()
    del inputs["attention_mask"]
    want, _ = answer(module, inputs)
    with use_unpadded_attention(module, on("cuda", "bf16")):
        torch.testing.assert_close(answer(module, inputs)[0], want, rtol=0, atol=0)


def test_without_attention_dropout_real_tokens_alone_are_read_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stand_ins.flash_attn(monkeypatch)
    monkeypatch.setattr(gpu_package, "find_problem", lambda package, device: None)
    dropped: list[float] = []
    attend = unpadded.attention_unpadded

    def watched(
        q: Tensor, k: Tensor, v: Tensor, real: RealTokens, dropout: float, *rest: Any
    ) -> Any:
        dropped.append(dropout)
        return attend(q, k, v, real, dropout, *rest)

    monkeypatch.setattr(unpadded, "attention_unpadded", watched)
    module, inputs = encoder("none").train(), padded()
    cuda, bf16 = torch.device("cuda"), on("cuda", "bf16")
    for way, shares in (("keep", {0.1}), ("off", {0.0})):
        with replace_dropout(module, cuda, way), use_unpadded_attention(module, bf16):  # type: ignore[arg-type]
            answer(module, inputs)
        assert set(dropped) == shares
        dropped.clear()
        parts = [m for m in module.modules() if hasattr(m, "config")]
        assert {cast(Any, part).config._attn_implementation for part in parts} == {"sdpa"}


@pytest.mark.parametrize(("device", "kind", "wrong"), [
    ("cpu", "bf16", None), ("cuda", "fp32", None), ("cuda", "fp16", "flash-attn is not installed"),
])  # fmt: skip
def test_sdpa_stays_elsewhere_and_where_the_kernel_fails(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, device: str, kind: str,
    wrong: str | None,
) -> None:  # fmt: skip
    monkeypatch.setattr(gpu_package, "find_problem", lambda package, device: wrong)
    module: Any = encoder("none")
    with caplog.at_level(logging.DEBUG), use_unpadded_attention(module, on(device, kind)):
        parts = [m for m in module.modules() if hasattr(m, "config")]
        assert {part.config._attn_implementation for part in parts} == {"sdpa"}
    assert (wrong or "") in caplog.text
