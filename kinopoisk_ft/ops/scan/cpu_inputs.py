"""What the kernels of the selective scan are given, and where in it they are at work."""

from __future__ import annotations

from typing import Any, NamedTuple

from numba import njit

from kinopoisk_ft.ops.simd.kernel_cache import OPTIONS
from kinopoisk_ft.ops.simd.load_store import read
from kinopoisk_ft.ops.simd.math import softplus
from kinopoisk_ft.ops.simd.register import LANES, load, prefetch, store
from kinopoisk_ft.ops.simd.threads import floats, integers

CHUNK = 32  # steps of time between saved states; the work of one chunk stays in the fast caches


class Problem(NamedTuple):
    """Sizes, and pointers; `*_row`, `*_step`: strides in elements over batch and time.

    u and z point to float32 or bfloat16, all else to float32.
    A: (states, width). B, C: (batch, length, states). D, bias: (width,).
    """

    batch: int
    length: int
    width: int
    states: int
    soft: bool
    gated: bool
    order: Any
    lengths: Any
    u: Any
    u_row: int
    u_step: int
    delta: Any
    delta_row: int
    delta_step: int
    z: Any
    z_row: int
    z_step: int
    A: Any
    B: Any
    C: Any
    D: Any
    bias: Any


class Spot(NamedTuple):
    """A chunk of a task: `wide` channels from `origin` on, `steps` steps from `start` on."""

    row: int
    origin: int
    wide: int
    start: int
    steps: int


@njit(forceinline=True)
def read_problem(a: Any, u: Any, z: Any) -> Problem:
    """Unpack the first fields of a kernel's table; the kernel's own begin at index 23."""
    return Problem(
        a[1], a[2], a[3], a[4], a[5] != 0, a[6] != 0, integers(a[7]), integers(a[8]),
        u, a[10], a[11], floats(a[12]), a[13], a[14], z, a[16], a[17],
        floats(a[18]), floats(a[19]), floats(a[20]), floats(a[21]), floats(a[22]),
    )  # fmt: skip


@njit(forceinline=True)
def row_at(spot: Spot, row_stride: int, step_stride: int) -> int:
    """Return the index of the spot's first element."""
    return spot.row * row_stride + spot.start * step_stride + spot.origin


@njit(forceinline=True)
def mark_at(p: Problem, spot: Spot, n: int, j: int) -> int:
    """Return the index of state n, channel j in the saved states (batch, chunks, states, width)."""
    chunks = (p.length + CHUNK - 1) // CHUNK
    return ((spot.row * chunks + spot.start // CHUNK) * p.states + n) * p.width + spot.origin + j


@njit(forceinline=True)
def local(t: int, j: int) -> int:
    """Return where a chunk's scratch keeps step t of the LANES channels from j on.

    All steps of a register's channels lie in a row: with channels in a row, the steps would fall
    into the same few sets of the cache.
    """
    return j * CHUNK + t * LANES


@njit(**OPTIONS)
def enter(p: Problem, spot: Spot, ahead: int, dt: Any, inflow: Any, y: Any) -> None:
    """Read a chunk: dt, the step after softplus; inflow = dt u; y = D u. Fetch the one `ahead`."""
    u_at, delta_at = row_at(spot, p.u_row, p.u_step), row_at(spot, p.delta_row, p.delta_step)
    for t in range(spot.steps):
        for j in range(0, spot.wide, LANES):
            prefetch(p.u, u_at + (t + ahead) * p.u_step + j)
            prefetch(p.delta, delta_at + (t + ahead) * p.delta_step + j)
            x = read(p.u, u_at + t * p.u_step + j)
            d = load(p.delta, delta_at + t * p.delta_step + j) + load(p.bias, spot.origin + j)
            if p.soft:
                d = softplus(d)
            i = local(t, j)
            store(dt, i, d)
            store(inflow, i, d * x)
            store(y, i, x * load(p.D, spot.origin + j))
