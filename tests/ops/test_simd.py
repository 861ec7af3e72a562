"""Test the foundation of the CPU kernels: vector functions and the cache of compiled code."""

from __future__ import annotations

import importlib
import inspect
import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numba import njit
from scan_cases import assert_close, draw, expected, run

from kinopoisk_ft.ops import precompile
from kinopoisk_ft.ops.scan.op import selective_scan
from kinopoisk_ft.ops.simd import kernel_cache
from kinopoisk_ft.ops.simd import math as simd_math
from kinopoisk_ft.ops.simd.denormals import flush_denormals, restore_mode
from kinopoisk_ft.ops.simd.load_store import load, store
from kinopoisk_ft.ops.simd.register import LANES, splat, sum_lanes
from kinopoisk_ft.ops.simd.threads import as_float32, run_kernel, take_task


def apply(function: Callable[[Any], Any], x: np.ndarray) -> np.ndarray:
    """Apply a function of vectors to an array whose size is a multiple of LANES."""

    @njit
    def every(x: Any, out: Any) -> None:
        for i in range(0, x.size, LANES):
            store(out, i, function(load(x, i)))

    out = np.empty_like(x)
    every(x, out)
    return out


@pytest.mark.parametrize(
    ("function", "exact", "low", "high"),
    [
        (simd_math.exp2, np.exp2, -126, 127.9),
        (simd_math.sigmoid, lambda x: 1 / (1 + np.exp(-x)), -80, 80),
        (simd_math.softplus, lambda x: np.logaddexp(0, x), -80, 200),
    ],
)
def test_functions_have_a_small_relative_error(
    function: Callable[[Any], Any], exact: Callable[[Any], Any], low: float, high: float
) -> None:
    x = np.linspace(low, high, 6400, dtype=np.float32)
    want = exact(x.astype(np.float64))
    assert np.max(np.abs(apply(function, x) / want - 1)) < 1e-5
    near = np.linspace(-4, 4, 6400, dtype=np.float32)
    assert np.max(np.abs(apply(function, near) / exact(near.astype(np.float64)) - 1)) < 5e-7


@pytest.mark.parametrize(
    ("split", "scale"),
    [
        # With AVX-512, these are its instructions.
        (simd_math.split, simd_math.scale),
        (simd_math._split_any, simd_math._scale_any),
    ],
)
def test_splitting_and_scaling_by_powers_of_two(split: Any, scale: Any) -> None:
    one = np.float32(1)

    @njit
    def scaled(x: Any) -> Any:
        rest, power = split(x)
        return scale(rest + splat(one), power)

    x = np.linspace(-100, 127.4, 6400, dtype=np.float32)
    rest = x - np.rint(x)
    np.testing.assert_array_equal(apply(scaled, x), np.ldexp(rest + one, np.rint(x).astype(int)))


def test_extremes() -> None:
    x = np.resize(np.float32([-1e30, -np.inf, 1e30, np.inf, np.nan, 0.0, -200.0, 200.0]), 16)
    power = apply(simd_math.exp2, x)[:8]
    assert np.all(power[[0, 1, 6]] < 1e-37)
    assert np.all(np.isinf(power[[2, 3, 7]]))
    assert np.isnan(power[4])
    assert power[5] == 1
    gate = apply(simd_math.sigmoid, x)[:8]
    np.testing.assert_allclose(gate, [0, 0, 1, 1, np.nan, 0.5, 0, 1], atol=1e-37)


def test_total_of_a_register() -> None:
    @njit
    def sum_first(x: Any) -> float:
        return sum_lanes(load(x, 0))

    assert sum_first(np.arange(LANES, dtype=np.float32)) == LANES * (LANES - 1) / 2


def test_stale_kernels_and_leftovers_are_dropped(tmp_path: Path) -> None:
    """Drop code together with its index: a killed process may leave a new index of old code."""
    cache = tmp_path / "__pycache__"
    cache.mkdir()
    now = time.time()
    ages = {"old.nbi": 9000, "old.1.nbc": 9000, "new.nbi": 10, "new.1.nbc": 10, "empty.1.nbc": 10,
            "killed.nbi.tmp.1f": 5000, "written.nbi.tmp.2f": 10}  # fmt: skip
    for name, age in ages.items():
        (cache / name).write_text("" if name in ("empty.1.nbc", "written.nbi.tmp.2f") else "x")
        os.utime(cache / name, (now - age, now - age))
    (cache / "gone.nbi").symlink_to("dropped by another process since it was listed")
    kernel_cache._drop_stale(now - 8000, cache)
    (cache / "gone.nbi").unlink()
    remaining = {path.name for path in cache.iterdir()}
    assert remaining == {"new.nbi", "new.1.nbc", "written.nbi.tmp.2f"}


def test_stale_kernels_in_another_folder_are_dropped(tmp_path: Path) -> None:
    """numba uses another folder with NUMBA_CACHE_DIR, or if the source folder is read-only."""
    code = "from kinopoisk_ft.ops.simd import kernel_cache; print(kernel_cache.find_folder())"
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    run = partial(subprocess.run, [sys.executable, "-c", code], env=environment, check=True)
    folder = Path(run(capture_output=True, text=True).stdout.strip())
    assert folder == tmp_path
    old = [place / "kernel.nbi" for place in folder.iterdir()]
    for file in old:
        file.touch()
        os.utime(file, (0, 0))
    run(capture_output=True)
    assert len(old) > 5
    assert not any(file.exists() for file in old)


def test_kernels_compile_without_a_cache_folder(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(**options: bool) -> None:
        raise RuntimeError("cannot cache function: no locator available")

    monkeypatch.setattr(kernel_cache, "njit", refuse)
    with caplog.at_level("INFO"):
        assert kernel_cache._prepare_cache() is False
    assert "no locator" in caplog.text


def _multiply(table: Any) -> None:
    """Multiply a vector by the next one, in one task; flush denormals if table[2] is not 0."""
    if take_task(table) == 0:
        x, mode = as_float32(table[1]), np.int64(0)
        if table[2]:
            mode = flush_denormals()
        store(x, 0, load(x, 0) * load(x, LANES))
        if table[2]:
            restore_mode(mode)


def test_denormals_are_flushed_only_within_a_kernel() -> None:
    for flushed in (False, True):
        x = torch.cat([torch.full((LANES,), 2e-38), torch.full((LANES,), 0.25)])
        run_kernel(_multiply, 1, [x.data_ptr(), int(flushed)])
        assert bool((x[:LANES] == 0).all()) == flushed
        # PyTorch's operators keep denormals.
        assert (torch.tensor([2e-38]) * 0.25).item() > 0


def test_gradients_stay_precise_when_states_decay_to_zero() -> None:
    """Take a gradient at the last step back through decays that fall far below 1e-38."""
    inputs = draw(1, 300, 16, 4)
    inputs["delta"] = inputs["delta"].abs() + 1
    grad = torch.zeros(1, 300, 16)
    grad[:, -1] = 1
    got = run(selective_scan, inputs, grad, backend="numba")
    assert_close(got, expected(inputs, grad), floor=1e-30)


def test_setup_compiles_every_kernel(caplog: pytest.LogCaptureFixture) -> None:
    files = kernel_cache.OPS.rglob("*.py")
    names = [".".join(file.relative_to(kernel_cache.OPS).with_suffix("").parts) for file in files]
    modules = [importlib.import_module(f"kinopoisk_ft.ops.{name}") for name in names]
    own = [f for m in modules for f in vars(m).values()
           if inspect.isfunction(f) and f.__module__ == m.__name__]  # fmt: skip
    # Kernels are the functions with a table as their only argument.
    expected_kernels = {f for f in own if list(inspect.signature(f).parameters) == ["table"]}
    assert set(precompile.list_kernels()) == expected_kernels
    with caplog.at_level("INFO"):
        precompile.main()
    assert f"{len(expected_kernels)} CPU kernels are compiled" in caplog.text


def test_precompile_warns_without_numba(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(precompile, "NUMBA_ERROR", "No module named 'numba'")
    precompile.main()
    assert (
        "cannot compile the CPU kernels: No module named 'numba'; please run: pip install"
        in caplog.text
    )
