"""The forward kernel of the selective scan, run by every thread at once.

A task is a row of the batch and a block of channels, the longest rows first. Time runs in chunks,
at whose starts the states are saved (`marks`) for the backward pass.
"""

from __future__ import annotations

from typing import Any

from numba import njit

from kinopoisk_ft.ops.scan.cpu_inputs import (
    CHUNK,
    Problem,
    Spot,
    enter,
    local,
    mark_at,
    read_problem,
    row_at,
)
from kinopoisk_ft.ops.scan.cpu_states import GROUP, advance, load_group, store_group
from kinopoisk_ft.ops.simd.denormals import flush_tiny, restore
from kinopoisk_ft.ops.simd.kernel_cache import OPTIONS
from kinopoisk_ft.ops.simd.load_store import clear, read, scratch, write
from kinopoisk_ft.ops.simd.math import sigmoid
from kinopoisk_ft.ops.simd.register import LANES, load, prefetch
from kinopoisk_ft.ops.simd.threads import bfloats, floats, take

BLOCK = 32  # so that the work of a chunk lies in the first cache


@njit(**OPTIONS)
def _leave(p: Problem, spot: Spot, y: Any, out: Any) -> None:
    """Write a chunk of the output, through the gate."""
    z_at = row_at(spot, p.z_row, p.z_step)
    out_at = row_at(spot, p.length * p.width, p.width)
    for t in range(spot.steps):
        for j in range(0, spot.wide, LANES):
            s = load(y, local(t, j))
            if p.gated:
                prefetch(p.z, z_at + (t + CHUNK) * p.z_step + j)
                gate = read(p.z, z_at + t * p.z_step + j)
                s = s * gate * sigmoid(gate)
            prefetch(out, out_at + (t + CHUNK) * p.width + j)
            write(out, out_at + t * p.width + j, s)


@njit(**OPTIONS)
def _chunk(
    p: Problem, spot: Spot, h: Any, dt: Any, inflow: Any, y: Any, marked: bool, marks: Any, out: Any
) -> None:
    enter(p, spot, CHUNK, dt, inflow, y)
    for j in range(0, spot.wide, LANES):
        for n in range(0, p.states, GROUP):
            at = j * p.states + n * LANES
            if marked:
                store_group(marks, mark_at(p, spot, n, j), p.width, load_group(h, at, LANES))
            advance(p, spot, n, j, h, at, dt, inflow, y)
    _leave(p, spot, y, out)


@njit(**OPTIONS)
def _forward(a: Any, u: Any, z: Any, out: Any) -> None:
    """Fill out (batch, length, width) and, where wanted, marks (batch, chunks, states, width)."""
    mode = flush_tiny()
    p = read_problem(a, u, z)
    marks, marked = floats(a[23]), a[25] != 0
    blocks = (p.width + BLOCK - 1) // BLOCK
    dt, inflow, y = scratch(CHUNK * BLOCK), scratch(CHUNK * BLOCK), scratch(CHUNK * BLOCK)
    h = scratch(p.states * BLOCK)
    task = take(a)
    while task < p.batch * blocks:
        row, origin = p.order[task // blocks], task % blocks * BLOCK
        wide, real = min(BLOCK, p.width - origin), p.lengths[row]
        h[:] = 0
        for start in range(0, real, CHUNK):
            spot = Spot(row, origin, wide, start, min(CHUNK, real - start))
            _chunk(p, spot, h, dt, inflow, y, marked, marks, out)
        clear(out, row, p.length, p.width, real, task % blocks, blocks)
        task = take(a)
    restore(mode)


def forward_float32(a: Any) -> None:
    """On float32 u, z and out."""
    _forward(a, floats(a[9]), floats(a[15]), floats(a[24]))


def forward_bfloat16(a: Any) -> None:
    """On bfloat16 u, z and out."""
    _forward(a, bfloats(a[9]), bfloats(a[15]), bfloats(a[24]))
