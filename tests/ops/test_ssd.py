"""Test the scan of Mamba-2: values and gradients against its definition in float64."""

from __future__ import annotations

import pytest
import stand_ins
import torch
from gpu import ON_GPU
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scan_cases import assert_close, draw
from scan_cases import run as run_scan
from torch import Tensor, nn

from kinopoisk_ft.errors import UserError
from kinopoisk_ft.ops.scan.op import selective_scan
from kinopoisk_ft.ops.ssd import chunked as ssd_chunked
from kinopoisk_ft.ops.ssd import cuda as ssd_cuda
from kinopoisk_ft.ops.ssd.chunked import CHUNK
from kinopoisk_ft.ops.ssd.op import ssd

OPTIONS = {"dt_softplus": True, "backend": "torch"}


def cases(
    batch: int, length: int, heads: int, head_dim: int, groups: int, states: int, seed: int = 0
) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    return {
        "x": normal(batch, length, heads, head_dim),
        "dt": normal(batch, length, heads) - 2,
        "A": -normal(heads).exp(),
        "B": normal(batch, length, groups, states),
        "C": normal(batch, length, groups, states),
        "D": normal(heads),
        "dt_bias": normal(heads),
    }


def both(
    inputs: dict[str, Tensor], device: str = "cpu", **options: object
) -> tuple[dict[str, Tensor], ...]:
    grad = torch.randn(inputs["x"].shape, generator=torch.Generator().manual_seed(1))
    exact = {name: x.double() for name, x in inputs.items()}
    want = run_scan(ssd, exact, grad.double(), **{**OPTIONS, **options, "backend": "reference"})
    placed = {name: x.to(device) for name, x in inputs.items()}
    return run_scan(ssd, placed, grad.to(device), **{**OPTIONS, **options}), want


@settings(max_examples=40, deadline=None)
@given(
    batch=st.integers(1, 3),
    length=st.integers(1, 3 * CHUNK),
    groups=st.integers(1, 3),
    each=st.integers(1, 3),
    head_dim=st.integers(1, 9),
    states=st.integers(1, 20),
    seed=st.integers(0, 9),
)
# The terms of the gradient of A nearly cancel.
@example(batch=1, length=85, groups=1, each=2, head_dim=9, states=16, seed=4)
def test_random_shapes(
    batch: int, length: int, groups: int, each: int, head_dim: int, states: int, seed: int
) -> None:
    got, want = both(cases(batch, length, groups * each, head_dim, groups, states, seed))
    # A sum over all steps can be close to 0 by chance.
    assert_close(got, want, floor=1.0)


@pytest.mark.parametrize("device", ["cpu", ON_GPU])
@pytest.mark.parametrize("length", [CHUNK - 1, CHUNK, CHUNK + 1, 5 * CHUNK])
def test_lengths_around_the_chunk_size(length: int, device: str) -> None:
    assert_close(*both(cases(2, length, 4, 8, 2, 16), device), 1e-5 if device == "cpu" else 1e-4)


@pytest.mark.parametrize("shift", [-40.0, -9.0, 5.0, 40.0, 300.0])
def test_very_small_and_very_large_steps(shift: float) -> None:
    inputs = cases(2, 2 * CHUNK + 5, 4, 6, 1, 8)
    inputs["dt_bias"] = inputs["dt_bias"] + shift
    assert_close(*both(inputs), floor=1e-9)


def test_steps_of_all_sizes_in_one_chunk() -> None:
    """Long sums of decays must not reduce the precision of shorter sums in the same chunk."""
    inputs = cases(2, 2 * CHUNK, 4, 6, 1, 8)
    inputs["dt"][:, ::2] += 30
    assert_close(*both(inputs))


def test_sums_where_a_device_has_no_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    acts = torch.randn(3, 2, 9, 9, dtype=torch.float64).tril()
    crossing = [acts[..., t:, :t].sum((2, 3)) for t in range(9)]
    torch.testing.assert_close(ssd_chunked._sum_across_steps(acts), torch.stack(crossing, dim=2))
    monkeypatch.setattr(ssd_chunked, "_wide_dtype", lambda _: torch.float32)
    torch.testing.assert_close(ssd_chunked._sum_across_steps(acts), torch.stack(crossing, dim=2))
    assert_close(*both(cases(2, 40, 4, 6, 2, 8)))


def test_outputs_and_gradients_are_zero_beyond_lengths() -> None:
    lengths = torch.tensor([0, 1, 70, 130])
    inputs = cases(4, 130, 4, 6, 2, 8)
    got, want = both(inputs, lengths=lengths)
    assert_close(got, want)
    for row, length in enumerate(lengths.tolist()):
        assert not got["out"][row, length:].any()
        assert not got["dt"][row, length:].any()
    beyond = torch.arange(130) >= lengths[:, None]
    inputs["x"][beyond] = float("nan")
    torch.testing.assert_close(both(inputs, lengths=lengths)[0]["out"], got["out"])


def test_limits_of_the_step() -> None:
    assert_close(*both(cases(2, 40, 4, 6, 2, 8), dt_limit=(0.05, 0.2)), floor=1e-3)


def test_equals_the_selective_scan_with_one_decay_per_head() -> None:
    """With one group and shared decays it is the scan of Mamba, which is implemented separately."""
    plain = draw(2, 90, 12, 5)
    heads, head_dim = 4, 3
    dt, A, gate = plain["delta"][..., :heads], plain["A"][:heads, 0], plain["z"]
    ours = ssd(
        plain["u"].unflatten(-1, (heads, head_dim)), dt, A,
        plain["B"][:, :, None], plain["C"][:, :, None], plain["D"][:heads], **OPTIONS,
    )  # fmt: skip
    theirs = selective_scan(
        plain["u"], dt.repeat_interleave(head_dim, 2),
        A.repeat_interleave(head_dim)[:, None].expand(-1, 5), plain["B"], plain["C"],
        plain["D"][:heads].repeat_interleave(head_dim), gate,
    )  # fmt: skip
    torch.testing.assert_close(
        ours.flatten(-2) * nn.functional.silu(gate), theirs, rtol=1e-5, atol=1e-5
    )


def test_half_precision_is_computed_in_float32() -> None:
    inputs = {name: x.bfloat16() for name, x in cases(2, 70, 4, 6, 2, 8).items()}
    exact = {name: x.float() for name, x in inputs.items()}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = ssd(**inputs, **OPTIONS)
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got, ssd(**exact, **OPTIONS).bfloat16(), rtol=0, atol=0)


def test_strided_inputs() -> None:
    inputs = cases(2, 70, 4, 6, 2, 8)
    wide = torch.cat([inputs["B"], inputs["C"]], dim=-1)
    views = inputs | {"B": wide[..., :8], "C": wide[..., 8:]}
    torch.testing.assert_close(ssd(**views, **OPTIONS), ssd(**inputs, **OPTIONS))


def test_invalid_shapes_and_backends_raise() -> None:
    inputs = cases(2, 8, 4, 6, 2, 8)
    with pytest.raises(ValueError, match="dt must be of shape"):
        ssd(**inputs | {"dt": inputs["dt"][:1]})
    with pytest.raises(ValueError, match="4 heads cannot be divided into 3 equal groups"):
        ssd(**inputs | {"B": torch.ones(2, 8, 3, 8), "C": torch.ones(2, 8, 3, 8)})
    with pytest.raises(ValueError, match="x must be"):
        ssd(**inputs | {"B": torch.ones(2, 8, 0, 8), "C": torch.ones(2, 8, 0, 8)})
    with pytest.raises(ValueError, match="x must be"):
        ssd(**inputs | {"x": inputs["x"].flatten(2)})
    with pytest.raises(UserError, match="runs on a GPU"):
        ssd(**inputs, backend="cuda")
    with pytest.raises(UserError, match="the backend of ssd cannot be 'numba'"):
        ssd(**inputs, backend="numba")


def test_compiles() -> None:
    inputs = cases(2, 70, 4, 6, 2, 8)
    scan = torch.compile(lambda **given: nn.functional.silu(ssd(**given, **OPTIONS)),
                         backend="aot_eager", fullgraph=True)  # fmt: skip
    want = nn.functional.silu(ssd(**inputs, **OPTIONS))
    torch.testing.assert_close(scan(**inputs), want)


def test_gpu_kernel_is_used_only_if_its_self_test_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    assert ssd_cuda.PACKAGE.diagnose(cpu) == "mamba-ssm is not installed"
    stand_ins.mamba_ssm_duality(monkeypatch)
    assert ssd_cuda.PACKAGE.diagnose(cpu) is None
    stand_ins.mamba_ssm_duality(monkeypatch, scale=1.1)
    assert "differs from the reference in values" in str(ssd_cuda.PACKAGE.diagnose(cpu))
    stand_ins.mamba_ssm_duality(monkeypatch, scale=1.1, longer_than=256)
    assert str(ssd_cuda.PACKAGE.diagnose(cpu)).endswith("at length 300")
