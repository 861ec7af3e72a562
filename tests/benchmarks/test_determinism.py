"""Test the determinism benchmark: it detects differences, and finds none in the CPU kernels."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from places import ROOT

from kinopoisk_ft.ops.scan.op import selective_scan

CPU = torch.device("cpu")


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import determinism

    return determinism


def test_a_different_gradient_is_detected(script: ModuleType) -> None:
    passes = iter([[1.0, 4.0], [1.0, 4.5], [1.0, 3.0]])
    found = script.differences(lambda: [torch.tensor([x, -8.0]) for x in next(passes)], 3)
    assert found == [0.0, 1 / 8]


def test_cpu_kernels_are_deterministic(script: ModuleType) -> None:
    names, backward = script.of_scan(16, CPU)
    assert script.differences(backward, 3) == [0.0] * len(names)


def test_parts_of_blocks_make_up_the_gradients(script: ModuleType) -> None:
    from common import atomics, scans

    torch.manual_seed(0)
    batch, length, width, states = 2, 6, 3, 4
    shapes = {"u": (batch, length, width), "delta": (batch, length, width), "A": (width, states),
              "B": (batch, length, states), "C": (batch, length, states), "D": (width,),
              "z": (batch, length, width)}  # fmt: skip
    inputs = {name: torch.randn(shape) for name, shape in shapes.items()}
    inputs["A"] = -inputs["A"].exp()
    grad = torch.randn(batch, length, width)
    parts = atomics.parts_of_blocks([*inputs.values()], grad)

    leaves = {name: x.double().requires_grad_() for name, x in inputs.items()}
    out = selective_scan(**leaves, backend="reference")
    whole = torch.autograd.grad(out, [*leaves.values()], grad.double())
    for name, gradient in zip(scans.NAMES, whole, strict=True):
        if name in parts:
            summed = atomics.added_in_some_order(parts[name])
            torch.testing.assert_close(summed.double(), gradient, rtol=1e-5, atol=1e-5)
    assert parts.keys() == {"A", "B", "C", "D"}


@pytest.mark.slow
def test_runs_differ_only_by_the_disturbance(script: ModuleType) -> None:
    for disturbance, apart in ((0.0, False), (1e-2, True)):
        first, *_, last = script.of_training(8, 10, disturbance)
        assert (first["after steps"], first["losses differ by"] > 0) == (1, apart)
        assert (last["losses differ by"] > 0, last["weights differ by"] > 0) == (apart, apart)
