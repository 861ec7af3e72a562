"""Test what holds for all operators and backends: empty batches, and PyTorch's defaults."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from kinopoisk_ft.ops.attention import cuda as attention_cuda
from kinopoisk_ft.ops.attention import op as attention
from kinopoisk_ft.ops.conv import op as conv
from kinopoisk_ft.ops.conv import reference as conv_reference
from kinopoisk_ft.ops.dropout import op as dropout
from kinopoisk_ft.ops.rms_norm import op as rms_norm
from kinopoisk_ft.ops.scan import op as scan
from kinopoisk_ft.ops.scan import reference as scan_reference
from kinopoisk_ft.ops.ssd import op as ssd
from kinopoisk_ft.ops.ssd import reference as ssd_reference

SELF_TESTS = {
    "selective_scan": scan_reference.SELF_TEST,
    "ssd": ssd_reference.SELF_TEST,
    "causal_conv1d": conv_reference.SELF_TEST,
    "attention": attention_cuda.PACKAGE.self_test,
}
# The function of each operator, its backends, and the names of arguments that have no batch.
OPERATORS: dict[str, tuple[Callable[..., Tensor], tuple[str, ...], tuple[str, ...]]] = {
    "selective_scan": (scan.selective_scan, scan.BACKENDS, ("A", "D")),
    "ssd": (ssd.ssd, ssd.BACKENDS, ("A",)),
    "causal_conv1d": (conv.causal_conv1d, conv.BACKENDS, ("weight", "bias")),
    "attention": (partial(attention.attention, p=0.3), attention.BACKENDS, ("mask",)),
    "dropout": (partial(dropout.dropout, p=0.3), dropout.BACKENDS, ()),
    "rms_norm": (rms_norm.rms_norm, rms_norm.BACKENDS, ("weight",)),
}
CASES = [
    (operator, backend)
    for operator, (_, backends, _) in OPERATORS.items()
    for backend in backends
    if backend != "cuda"
]


def draw_inputs(operator: str) -> dict[str, Tensor]:
    if operator in SELF_TESTS:
        inputs, _ = SELF_TESTS[operator].draw_inputs(2, 9, 16, torch.device("cpu"))
        # Half of the keys are masked.
        mask = torch.arange(9, device="cpu") % 2 == 0
        return inputs | ({"mask": mask} if operator == "attention" else {})
    x = torch.arange(36.0, dtype=torch.float32, device="cpu").view(2, 18)
    return {"x": x, "weight": x[0] + 1} if operator == "rms_norm" else {"x": x}


def run(operator: str, backend: str, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the output and the gradients, by name."""
    torch.manual_seed(0)
    fixed: dict[str, Any] = {"backend": backend}
    if operator == "attention":
        fixed["mask"] = inputs["mask"]
    function = partial(OPERATORS[operator][0], **fixed)
    leaves = {name: x for name, x in inputs.items() if name != "mask"}
    grad = torch.ones_like(next(iter(leaves.values())))
    return scan_reference.SELF_TEST.run_backward(function, leaves, grad)


@pytest.fixture
def other_defaults() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            yield
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(("operator", "backend"), CASES)
def test_an_empty_batch_gives_an_empty_output_and_zero_gradients(
    operator: str, backend: str
) -> None:
    inputs, whole = draw_inputs(operator), OPERATORS[operator][2]
    empty = {name: x if name in whole else x[:0] for name, x in inputs.items()}
    found = run(operator, backend, empty)
    assert found.pop("values").shape == next(iter(empty.values())).shape
    for name, x in found.items():
        assert x.shape == empty[name.removeprefix("gradient of ")].shape
        assert not x.any(), name


@pytest.mark.parametrize(("operator", "backend"), CASES)
def test_results_do_not_depend_on_the_default_dtype_and_device(
    operator: str, backend: str, request: pytest.FixtureRequest
) -> None:
    want = run(operator, backend, draw_inputs(operator))
    request.getfixturevalue("other_defaults")
    got = run(operator, backend, draw_inputs(operator))
    assert want["values"].any()
    for name, x in want.items():
        assert torch.equal(got[name], x), name
