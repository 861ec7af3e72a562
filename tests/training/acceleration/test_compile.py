"""Check that training through torch.compile gives the same results."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gpu import on_gpu
from short_fit import short_fit, weights

from kinopoisk_ft.errors import UserError
from kinopoisk_ft.training.acceleration import compile as compiling
from kinopoisk_ft.training.acceleration.compile import compile_model
from kinopoisk_ft.training.distributed.strategy import check_strategy

CPU = torch.device("cpu")
NUMBERS = ("train_loss", "val_loss", "lr")


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The options of each call of `torch.compile`, which traces without compiling."""
    asked: list[dict[str, Any]] = []
    real = torch.compile

    def trace(function: Any, **options: Any) -> Any:
        asked.append(dict(options))
        options.pop("mode", None)
        return real(function, backend="eager", **options)

    monkeypatch.setattr(torch, "compile", trace)
    return asked


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["mamba_scratch", "bert_scratch"])
def test_traced_training_is_the_same(
    kind: str, eager: list[dict[str, Any]], tmp_path: Path
) -> None:
    plain, expected = short_fit(tmp_path / "plain", kind=kind)
    assert eager == []
    mode = "trainer.compile=reduce-overhead"
    traced, found = short_fit(tmp_path / "traced", mode, kind=kind)
    assert eager[-1] == {"mode": "reduce-overhead", "dynamic": True}
    assert type(traced.wrapped_model).__name__ == "OptimizedModule"
    assert traced.meter.clock.seconds["compile"] > 0
    for name in NUMBERS:
        np.testing.assert_allclose(found.of(name), expected.of(name), atol=1e-6)
    torch.testing.assert_close(weights(traced), weights(plain), atol=1e-5, rtol=0)


@pytest.mark.slow
def test_a_lack_of_memory_in_compiling_makes_smaller_parts(
    eager: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[int] = []

    def lacks(state: object, model: object, train: object, rows: int) -> torch.Tensor:
        tried.append(rows)
        if rows > 6:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return torch.zeros((), requires_grad=True)

    monkeypatch.setattr(compiling, "run_longest", lacks)
    state, _ = short_fit(tmp_path, "trainer.compile=default")
    assert tried == [12, 6]
    assert state.micro_batch_size == 6


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile wants a C++ compiler")
@pytest.mark.parametrize(
    ("mode", "device"),
    [
        pytest.param("default", "cpu", marks=pytest.mark.slow),
        on_gpu("default"),
        on_gpu("reduce-overhead"),
    ],
)
def test_compiled_training_is_the_same(mode: str, device: str, tmp_path: Path) -> None:
    where = f"trainer.device={device}"
    _, expected = short_fit(tmp_path / "plain", where)
    _, found = short_fit(tmp_path / "compiled", where, f"trainer.compile={mode}")
    for name in NUMBERS:
        atol = 1e-5 if device == "cpu" else 1e-3
        np.testing.assert_allclose(found.of(name), expected.of(name), atol=atol)


def test_failing_compiler_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(function: Any, **options: Any) -> Any:
        raise RuntimeError("InvalidCxxCompiler: no compiler\nmore")

    monkeypatch.setattr(torch, "compile", refuse)
    with pytest.raises(UserError, match=r"does not work on this machine: .*no compiler") as raised:
        compile_model(torch.nn.Linear(2, 2), "default", CPU)
    assert "C++ compiler" in str(raised.value)


def test_cached_activations_bypass_the_compiled_model() -> None:
    with pytest.raises(UserError, match="compile=default"):
        check_strategy("none", 16, None, "fp16", "default", "fp32")
