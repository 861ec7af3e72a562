"""The benchmark of determinism: it sees what differs, and finds nothing in our kernels on a CPU."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
import torch

ROOT = Path(__file__).parents[1]
CPU = torch.device("cpu")


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import determinism

    return determinism


def test_a_gradient_that_differs_is_seen(script: ModuleType) -> None:
    passes = iter([[1.0, 4.0], [1.0, 4.5], [1.0, 3.0]])
    found = script.differences(lambda: [torch.tensor([x, -8.0]) for x in next(passes)], 3)
    assert found == [0.0, 1 / 8]


def test_our_kernels_differ_by_nothing_on_a_cpu(script: ModuleType) -> None:
    names, backward = script.of_scan(16, CPU)
    assert script.differences(backward, 3) == [0.0] * len(names)
