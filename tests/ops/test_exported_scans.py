"""Test that scans traced by torch.export at one length are correct at every length."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from scan_cases import draw
from torch import Tensor, nn
from torch.export import Dim

from kinopoisk_ft.ops.scan.op import selective_scan
from kinopoisk_ft.ops.scan.reference import selective_scan_reference
from kinopoisk_ft.ops.ssd.op import ssd
from kinopoisk_ft.ops.ssd.reference import draw as draw_ssd
from kinopoisk_ft.ops.ssd.reference import ssd_reference

pytestmark = pytest.mark.slow
# One token, a part of a chunk, a whole chunk, and more.
LENGTHS = (1, 5, 64, 131)


class Operator(nn.Module):
    """A module whose arguments are those of an operator."""

    def __init__(self, operator: Any, **options: Any) -> None:
        super().__init__()
        self.operator, self.options = operator, options

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        result: Tensor = self.operator(**inputs, **self.options)
        return result


def trace(operator: nn.Module, inputs: dict[str, Tensor]) -> nn.Module:
    sizes = {
        name: {0: Dim.DYNAMIC, 1: Dim.DYNAMIC} if x.dim() > 2 else {} for name, x in inputs.items()
    }
    program = torch.export.export(operator, (inputs,), dynamic_shapes=(sizes,))
    # A guard of Mamba-2's scan excludes multiples of 64. An ONNX graph has no guards.
    return program.module(check_guards=False)


def test_selective_scan() -> None:
    traced = trace(Operator(selective_scan), draw(2, 130, 12, 4))
    for length in LENGTHS:
        inputs = draw(3, length, 12, 4)
        want = selective_scan_reference(**inputs)
        torch.testing.assert_close(traced(inputs), want, atol=1e-4, rtol=1e-4)


def test_ssd() -> None:
    generator = torch.Generator().manual_seed(0)
    traced = trace(Operator(ssd), draw_ssd(2, 130, 12, generator, 8))
    for length in LENGTHS:
        inputs = draw_ssd(3, length, 12, generator, 8)
        torch.testing.assert_close(traced(inputs), ssd_reference(**inputs), atol=1e-4, rtol=1e-4)
