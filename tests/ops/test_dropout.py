"""Test dropout: its definition in numpy, statistics, gradients and reproducibility."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from draw_reference import draws
from scipy import stats
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from kinopoisk_ft.errors import UserError
from kinopoisk_ft.ops import backends
from kinopoisk_ft.ops.dropout.cpu import ROW, drop
from kinopoisk_ft.ops.dropout.op import draw_key, dropout

# A fair generator falls below this p-value with one seed in 10,000; the seeds are fixed.
MIN_P_VALUE = 1e-4


@pytest.fixture(autouse=True)
def _seed() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


def draw_mask(size: int, p: float, key: int) -> np.ndarray:
    """Draw the mask of `size` elements with the operator; true where it keeps one."""
    return (drop(torch.ones(size), torch.tensor(key), p) != 0).numpy()


def independence_p_value(a: np.ndarray, b: np.ndarray) -> float:
    """Compute the p-value of the chi-square test that two masks are independent."""
    table = np.bincount(2 * a.ravel() + b.ravel(), minlength=4).reshape(2, 2)
    return float(stats.chi2_contingency(table).pvalue)


@pytest.mark.parametrize("size", [1, 7, 16, 31, ROW - 1, ROW, ROW + 17, 3 * ROW])
@pytest.mark.parametrize("key", [0, 5, 2**63 - 2])
def test_operator_draws_as_defined(size: int, key: int) -> None:
    want = np.concatenate([draws(key, row, ROW) for row in range(-(-size // ROW))])[:size]
    for p in (0.1, 0.75):
        np.testing.assert_array_equal(draw_mask(size, p, key), want < (1 - p) * 2**32)


@pytest.mark.parametrize("p", [0.001, 0.1, 0.3, 0.5, 0.9])
def test_rate_is_binomial(p: float) -> None:
    size = 2**21
    for key in (1, 2):
        count = int(draw_mask(size, p, key).sum())
        assert stats.binomtest(count, size, 1 - p).pvalue > MIN_P_VALUE


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_neighbours_rows_and_calls_are_independent(p: float) -> None:
    mask = draw_mask(2**21, p, 77)
    for lag in (1, 2, 3, 8, 16, 256, ROW):
        assert independence_p_value(mask[:-lag], mask[lag:]) > MIN_P_VALUE, lag
    for other in (78, 77 + 2**32, 77 ^ (1 << 62)):
        assert independence_p_value(mask, draw_mask(2**21, p, other)) > MIN_P_VALUE, other


def test_patterns_of_eight_and_columns_are_uniform() -> None:
    mask = draw_mask(2**22, 0.5, 3)
    patterns = np.bincount(np.packbits(mask), minlength=256)
    assert stats.chisquare(patterns).pvalue > MIN_P_VALUE
    columns = mask.reshape(-1, ROW).sum(0)
    rows = mask.size // ROW
    statistic = ((columns - rows / 2) ** 2).sum() / (rows / 4)
    assert MIN_P_VALUE < stats.chi2.sf(statistic, ROW) < 1 - MIN_P_VALUE


def test_seeds_and_calls_draw_unrelated_keys() -> None:
    masks = []
    for seed in range(3):
        torch.manual_seed(seed)
        masks += [(dropout(torch.ones(2**18), 0.5) != 0).numpy() for _ in range(2)]
    for i, one in enumerate(masks):
        for other in masks[:i]:
            assert independence_p_value(one, other) > MIN_P_VALUE


def test_values_are_scaled_or_zero() -> None:
    x = torch.randn(5, 1001)
    y = dropout(x, 0.2, backend="numba")
    on = y != 0
    torch.testing.assert_close(y[on], x[on] / 0.8)
    assert torch.equal(dropout(x, 0.0), x)
    assert not dropout(x, 1.0, backend="numba").any()
    assert dropout(torch.ones(0, 3), 0.5, backend="numba").shape == (0, 3)


def test_gradient_is_the_mask() -> None:
    x = torch.randn(37, 53, requires_grad=True)
    y = dropout(x, 0.3, backend="numba")
    grad = torch.randn_like(x)
    (got,) = torch.autograd.grad(y, x, grad)
    mask = (y != 0) / 0.7
    torch.testing.assert_close(got, grad * mask)
    torch.testing.assert_close(y.detach(), x.detach() * mask)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_result_does_not_depend_on_threads_or_layout(dtype: torch.dtype) -> None:
    x = torch.randn(300, 301).to(dtype).t()
    out = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        torch.manual_seed(1)
        out.append(dropout(x, 0.1, backend="numba"))
        assert out[-1].dtype == dtype
    torch.manual_seed(1)
    out.append(dropout(x.contiguous(), 0.1, backend="numba"))
    assert all(torch.equal(out[0], other) for other in out)


def test_bfloat16_rounds_to_nearest() -> None:
    special = torch.tensor([float("nan"), float("inf"), 3.3e38, -0.0]).repeat(16)
    x = torch.cat([torch.randn(4096), special]).bfloat16()
    y = drop(x, torch.tensor(0), 0.5)
    mask = drop(torch.ones(len(x)), torch.tensor(0), 0.5)
    want = (x.float() * mask).bfloat16()
    torch.testing.assert_close(y, want, rtol=0, atol=0, equal_nan=True)


def test_generator_state_reproduces_masks() -> None:
    state = torch.get_rng_state()
    first = [dropout(torch.ones(99), 0.5) for _ in range(3)]
    torch.set_rng_state(state)
    again = [dropout(torch.ones(99), 0.5) for _ in range(3)]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], first[1])


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_draws_the_same_mask(reentrant: bool) -> None:
    def twice(x: Tensor) -> Tensor:
        return dropout(dropout(x, 0.3).sin(), 0.3)

    x = torch.randn(1000, requires_grad=True)
    torch.manual_seed(3)
    (want,) = torch.autograd.grad(twice(x).sum(), x)
    torch.manual_seed(3)
    checkpoint(twice, x, use_reentrant=reentrant).sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, want)


def test_operator_passes_opcheck() -> None:
    x = torch.randn(9, 6, requires_grad=True)
    checks = ("test_schema", "test_autograd_registration", "test_faketensor",
              "test_aot_dispatch_static")  # fmt: skip
    torch.library.opcheck(drop, (x, draw_key(), 0.5), test_utils=checks)
    with torch.autocast("cpu", torch.bfloat16):
        assert dropout((x @ x.t()), 0.5).dtype == torch.bfloat16


def test_pytorch_runs_in_float64() -> None:
    x = torch.ones(50, dtype=torch.float64)
    torch.manual_seed(5)
    got = dropout(x, 0.5)
    torch.manual_seed(5)
    assert torch.equal(got, torch.nn.functional.dropout(x, 0.5))
    with pytest.raises(UserError, match="float64"):
        dropout(x, 0.5, backend="numba")
    with pytest.raises(UserError, match="the backend of dropout cannot be"):
        dropout(x, 0.5, backend="cuda")
    for backend, message in (("torch", "between 0 and 1"), ("numba", "from 0 to 1")):
        with pytest.raises(ValueError, match=message):
            dropout(x.float(), 1.5, backend=backend)


def test_pytorch_runs_without_numba(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "NUMBA_ERROR", "No module named 'numba'")
    x = torch.ones(50)
    torch.manual_seed(5)
    got = dropout(x, 0.5)
    torch.manual_seed(5)
    assert torch.equal(got, torch.nn.functional.dropout(x, 0.5))


def test_compiled_graphs_draw_a_new_mask_at_each_call() -> None:
    compiled = torch.compile(dropout, backend="aot_eager", fullgraph=True)
    x = torch.randn(500, requires_grad=True)
    out = [compiled(x, 0.5) for _ in range(2)]
    assert not torch.equal(out[0], out[1])
    (grad,) = torch.autograd.grad(out[1].sum(), x)
    torch.testing.assert_close(out[1], x * grad)
