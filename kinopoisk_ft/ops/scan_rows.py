"""Selective scan on a CPU: the kernels that threads run, one task after another.

A task is one row of the batch and a block of channels. Time runs in chunks: the forward pass saves
the states at the chunk starts (`marks`), the backward pass recomputes the others from them.
`*_row` and `*_step` are strides in elements over batch and time.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from kinopoisk_ft.ops.lane_math import sigmoid, softplus
from kinopoisk_ft.ops.lanes import LANES, load, splat, store
from kinopoisk_ft.ops.scan_kernels import (
    CHUNK,
    GROUP,
    OPTIONS,
    advance_group,
)
from kinopoisk_ft.ops.threads import floats, integers, take

BLOCK = 64
BACKWARD_BLOCK = 128
_f = np.float32


@njit(**OPTIONS)
def enter(
    u: Any, at: int, u_step: int, delta: Any, delta_at: int, delta_step: int, D: Any, bias: Any,
    origin: int, soft: bool, dt: Any, inflow: Any, y: Any, block: int, wide: int, steps: int,
) -> None:  # fmt: skip
    """Read a chunk of u and delta: the step after softplus, the inflow, the skip D u."""
    for t in range(steps):
        for j in range(0, wide, LANES):
            x = load(u, at + t * u_step + j)
            d = load(delta, delta_at + t * delta_step + j) + load(bias, origin + j)
            if soft:
                d = softplus(d)
            i = t * block + j
            store(dt, i, d)
            store(inflow, i, d * x)
            store(y, i, x * load(D, origin + j))


@njit(**OPTIONS)
def _leave(
    y: Any, z: Any, z_at: int, z_step: int, gated: bool, out: Any, at: int, width: int,
    block: int, wide: int, steps: int,
) -> None:  # fmt: skip
    for t in range(steps):
        for j in range(0, wide, LANES):
            s = load(y, t * block + j)
            if gated:
                gate = load(z, z_at + t * z_step + j)
                s = s * gate * sigmoid(gate)
            store(out, at + t * width + j, s)


@njit(**OPTIONS)
def clear(out: Any, at: int, width: int, wide: int, first: int, last: int) -> None:
    for t in range(first, last):
        for j in range(0, wide, LANES):
            store(out, at + t * width + j, splat(_f(0)))


def forward(a: Any) -> None:
    """Fill out (batch, length, width) and, where wanted, marks (batch, chunks, states, width)."""
    block = BLOCK
    batch, length, width, states, soft, gated = a[1], a[2], a[3], a[4], a[5] != 0, a[6] != 0
    order, lengths = integers(a[7]), integers(a[8])
    u, u_row, u_step = floats(a[9]), a[10], a[11]
    delta, delta_row, delta_step = floats(a[12]), a[13], a[14]
    z, z_row, z_step = floats(a[15]), a[16], a[17]
    rate, B, C, D, bias = floats(a[18]), floats(a[19]), floats(a[20]), floats(a[21]), floats(a[22])
    marks, out, marked = floats(a[23]), floats(a[24]), a[25] != 0
    blocks, chunks = (width + block - 1) // block, (length + CHUNK - 1) // CHUNK
    dt, inflow = np.empty(CHUNK * block, _f), np.empty(CHUNK * block, _f)
    y, h = np.empty(CHUNK * block, _f), np.empty(states * block, _f)
    while True:
        task = take(a)
        if task >= batch * blocks:
            return
        row, origin = order[task // blocks], task % blocks * block
        wide, real = min(block, width - origin), lengths[row]
        base = row * length * width + origin
        h[:] = _f(0)
        for chunk in range((real + CHUNK - 1) // CHUNK):
            start = chunk * CHUNK
            steps = min(CHUNK, real - start)
            enter(
                u, row * u_row + start * u_step + origin, u_step,
                delta, row * delta_row + start * delta_step + origin, delta_step,
                D, bias, origin, soft, dt, inflow, y, block, wide, steps,
            )  # fmt: skip
            for j in range(0, wide, LANES):
                for n in range(0, states, GROUP):
                    local, at = j * states + n * LANES, n * width + origin + j
                    if marked:
                        mark = ((row * chunks + chunk) * states + n) * width + origin + j
                        for s in range(GROUP):
                            store(marks, mark + s * width, load(h, local + s * LANES))
                    advance_group(
                        rate, at, width, h, local, B, C,
                        (row * length + start) * states + n, states, dt, inflow, y, j, block, steps,
                    )  # fmt: skip
            z_at = row * z_row + start * z_step + origin
            _leave(y, z, z_at, z_step, gated, out, base + start * width, width, block, wide, steps)
        clear(out, base, width, wide, real, length)
