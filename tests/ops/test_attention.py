"""Test attention with dropout: CPU kernels against float64 attention with the same mask."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from draw_reference import draws
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from kinopoisk_ft.ops.attention import cpu as attention_cpu
from kinopoisk_ft.ops.attention.cpu import attend
from kinopoisk_ft.ops.attention.op import attention
from kinopoisk_ft.ops.dropout.op import draw_key

KEY = 4242


@pytest.fixture(autouse=True)
def _seed() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


def dropout_factors(shape: tuple[int, ...], p: float) -> Tensor:
    """Compute the factors of dropout for probabilities (batch, heads, queries, keys)."""
    rows, keys = math.prod(shape[:3]), shape[3]
    mask = np.stack([draws(KEY, row, keys) < (1 - p) * 2**32 for row in range(rows)])
    return torch.from_numpy(mask).view(shape).double() / (1 - p)


def reference(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, p: float, scale: float
) -> Tensor:
    logits = q @ k.transpose(2, 3) * scale
    if mask is not None:
        bias = mask.double() if mask.is_floating_point() else torch.where(mask, 0.0, -math.inf)
        logits = logits + bias
    no_keys = (logits == -math.inf).all(-1, keepdim=True)
    weights = logits.masked_fill(no_keys, 0.0).softmax(-1).masked_fill(no_keys, 0.0)
    return (weights * dropout_factors(tuple(logits.shape), p)) @ v


def compare(inputs: list[Tensor], mask: Tensor | None, p: float, tolerance: float) -> None:
    leaves = [x.clone().requires_grad_() for x in inputs]
    exact = [x.double().requires_grad_() for x in inputs]
    out, _ = attend(*leaves, mask, torch.tensor(KEY), p, 0.4)
    want = reference(*exact, mask, p, 0.4)
    grad = torch.randn_like(out)
    got = [out, *torch.autograd.grad(out, leaves, grad)]
    for actual, expected in zip(
        got, [want, *torch.autograd.grad(want, exact, grad.double())], strict=True
    ):
        assert actual.shape == expected.shape
        assert (actual.double() - expected).norm() <= tolerance * max(expected.norm().item(), 1.0)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    batch=st.integers(1, 3), heads=st.integers(1, 3), queries=st.integers(1, 40),
    keys=st.integers(1, 70), width=st.integers(1, 9), p=st.sampled_from([0.1, 0.5, 0.9]),
    masked=st.sampled_from(["no", "padding", "square", "numbers"]), chunk=st.integers(1, 60_000),
)  # fmt: skip
def test_numba_agrees_with_the_definition(
    batch: int, heads: int, queries: int, keys: int, width: int, p: float, masked: str, chunk: int
) -> None:
    shapes = [(batch, heads, n, width) for n in (queries, keys, keys)]
    inputs = [torch.randn(shape) for shape in shapes]
    mask = None
    if masked == "padding":
        lengths = torch.randint(1, keys + 1, (batch, 1, 1, 1))
        mask = (torch.arange(keys) < lengths).expand(batch, 1, queries, keys)
    elif masked == "square":
        # Some rows have no key to attend to.
        mask = torch.rand(1, heads, queries, keys) < 0.5
    elif masked == "numbers":
        mask = torch.randn(batch, 1, queries, keys)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention_cpu, "SCORE_BYTES", chunk)
        compare(inputs, mask, p, 1e-5)


def test_masked_keys_get_no_gradient() -> None:
    q, k, v = (torch.randn(2, 2, 20, 8, requires_grad=True) for _ in range(3))
    mask = (torch.arange(20) < torch.tensor([20, 13]).view(2, 1, 1, 1)).expand(2, 1, 20, 20)
    out = attention(q, k, v, mask, 0.1)
    _, grad_k, grad_v = torch.autograd.grad(out, (q, k, v), torch.randn_like(out))
    assert torch.all(grad_k[1, :, 13:] == 0)
    assert torch.all(grad_v[1, :, 13:] == 0)
    assert grad_k[1, :, :13].abs().min() > 0


@pytest.mark.parametrize("where", [0, slice(None)])
def test_nan_is_passed_on(where: int | slice) -> None:
    q, k, v = (torch.randn(1, 1, 20, 8) for _ in range(3))
    q[:, :, 5, where] = math.nan
    leaves = [x.requires_grad_() for x in (q, k, v)]
    out = attention(*leaves, None, 0.1)
    assert out.isnan().any(-1).flatten().nonzero().flatten().tolist() == [5]
    grads = torch.autograd.grad(out, leaves, torch.ones_like(out))
    assert all(grad.isnan().any() for grad in grads)


def test_bfloat16_is_as_precise_as_its_rounding() -> None:
    inputs = [torch.randn(2, 3, 40, 16).bfloat16() for _ in range(3)]
    compare(inputs, None, 0.1, 2e-2)
    half = attention(*(x.half() for x in inputs), None, 0.1)
    assert half.dtype == torch.float16


def test_large_scores_and_a_mask_of_the_lowest_numbers() -> None:
    q, k, v = (torch.randn(1, 2, 20, 8) for _ in range(3))
    mask = torch.zeros(1, 1, 1, 20).index_fill_(3, torch.arange(12, 20), torch.finfo().min)
    compare([100 * q, k, v], mask, 0.1, 1e-4)


def test_expectation_is_attention_without_dropout() -> None:
    q, k, v = (torch.randn(1, 2, 12, 8) for _ in range(3))
    times = 4000
    repeated = [x.expand(times, -1, -1, -1) for x in (q, k, v)]
    out = attention(*repeated, None, 0.2, backend="numba")
    want = nn.functional.scaled_dot_product_attention(q, k, v)[0]
    error = (out.mean(0) - want) / (out.std(0) / times**0.5)
    # In standard errors, for 192 averages.
    assert error.abs().max() < 4.5
    assert error.std().item() == pytest.approx(1, abs=0.2)


def test_result_depends_on_the_generator_and_not_on_threads() -> None:
    leaves = [torch.randn(3, 2, 50, 8, requires_grad=True) for _ in range(3)]
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        torch.manual_seed(1)
        out = attention(*leaves, None, 0.3, backend="numba")
        results.append([out, *torch.autograd.grad(out.sin().sum(), leaves)])
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)
    assert not torch.equal(out, attention(*leaves, None, 0.3))


def test_gradient_checkpointing_draws_the_same_mask() -> None:
    q, k, v = (torch.randn(2, 2, 30, 8, requires_grad=True) for _ in range(3))
    torch.manual_seed(3)
    want = torch.autograd.grad(attention(q, k, v, None, 0.3).sin().sum(), (q, k, v))
    torch.manual_seed(3)
    out = checkpoint(attention, q, k, v, None, 0.3, use_reentrant=False)
    out.sin().sum().backward()
    for leaf, exact in zip((q, k, v), want, strict=True):
        torch.testing.assert_close(leaf.grad, exact, rtol=0, atol=0)


def test_operator_passes_opcheck() -> None:
    leaves = [torch.randn(2, 2, n, 4, requires_grad=True) for n in (5, 7, 7)]
    mask = torch.ones(2, 1, 5, 7, dtype=torch.bool)
    checks = ("test_schema", "test_autograd_registration", "test_faketensor",
              "test_aot_dispatch_static")  # fmt: skip
    torch.library.opcheck(attend, (*leaves, mask, draw_key(), 0.5, 0.5), test_utils=checks)


def test_pytorch_runs_without_dropout_and_in_float64() -> None:
    q, k, v = (torch.randn(1, 2, 9, 4, dtype=torch.float64) for _ in range(3))
    want = nn.functional.scaled_dot_product_attention(q, k, v)
    assert torch.equal(attention(q, k, v, None, 0.0), want)
    torch.manual_seed(7)
    got = attention(q, k, v, None, 0.5)
    torch.manual_seed(7)
    assert torch.equal(got, nn.functional.scaled_dot_product_attention(q, k, v, dropout_p=0.5))
