"""Selective scan on a CPU: the backward kernel that threads run, one task after another.

The sums over a row's channels (for B, C) are left per block, those over rows (for A, D, bias) per
row: no two tasks write the same place, and the result does not depend on the number of threads.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from kinopoisk_ft.ops.lane_math import LN_2, sigmoid
from kinopoisk_ft.ops.lanes import LANES, load, splat, store
from kinopoisk_ft.ops.scan_kernels import (
    CHUNK,
    GROUP,
    OPTIONS,
    recall_group,
    retreat_group,
    sum_lanes,
)
from kinopoisk_ft.ops.scan_rows import clear, enter
from kinopoisk_ft.ops.threads import floats, integers, take

BLOCK = 128
_f = np.float32


@njit(**OPTIONS)
def _enter_gradient(
    grad: Any, at: int, grad_step: int, z: Any, z_at: int, z_step: int, gated: bool,
    g: Any, gx: Any, gt: Any, wide: int, steps: int,
) -> None:  # fmt: skip
    """Read a chunk of the output's gradient and take it back through the gate."""
    for t in range(steps):
        for j in range(0, wide, LANES):
            value = load(grad, at + t * grad_step + j)
            if gated:
                gate = load(z, z_at + t * z_step + j)
                value = value * gate * sigmoid(gate)
            store(g, t * BLOCK + j, value)
            store(gx, t * BLOCK + j, splat(_f(0)))
            store(gt, t * BLOCK + j, splat(_f(0)))


@njit(**OPTIONS)
def _leave_gate(
    grad: Any, at: int, grad_step: int, z: Any, z_at: int, z_step: int, y: Any,
    grad_z: Any, out_at: int, width: int, wide: int, steps: int,
) -> None:  # fmt: skip
    for t in range(steps):
        for j in range(0, wide, LANES):
            gate = load(z, z_at + t * z_step + j)
            s = sigmoid(gate)
            slope = s + s * gate * (splat(_f(1)) - s)
            value = load(grad, at + t * grad_step + j) * load(y, t * BLOCK + j) * slope
            store(grad_z, out_at + t * width + j, value)


@njit(**OPTIONS)
def _leave(
    u: Any, at: int, u_step: int, delta: Any, delta_at: int, delta_step: int, D: Any, bias: Any,
    origin: int, soft: bool, dt: Any, g: Any, gx: Any, gt: Any,
    grad_u: Any, grad_delta: Any, out_at: int, sums: Any, width: int, wide: int, steps: int,
) -> None:  # fmt: skip
    """Write the gradients of u and delta; add those of D and bias to `sums` (2, BLOCK)."""
    for j in range(0, wide, LANES):
        skip, offset = load(D, origin + j), load(bias, origin + j)
        sum_skip, sum_offset = load(sums, j), load(sums, BLOCK + j)
        for t in range(steps):
            i, k = t * BLOCK + j, out_at + t * width + j
            x, w, v = load(u, at + t * u_step + j), load(g, i), load(gx, i)
            slope = load(gt, i) * splat(LN_2) + v * x
            if soft:
                slope = slope * sigmoid(load(delta, delta_at + t * delta_step + j) + offset)
            store(grad_u, k, v * load(dt, i) + w * skip)
            store(grad_delta, k, slope)
            sum_skip, sum_offset = w * x + sum_skip, sum_offset + slope
        store(sums, j, sum_skip)
        store(sums, BLOCK + j, sum_offset)


def backward(a: Any) -> None:
    """Fill every gradient: grad_rate (batch, states, width), grad_B, grad_C (blocks, batch, length,
    states), sums (batch, 2, width) for D and bias.
    """
    batch, length, width, states, soft, gated = a[1], a[2], a[3], a[4], a[5] != 0, a[6] != 0
    order, lengths = integers(a[7]), integers(a[8])
    u, u_row, u_step = floats(a[9]), a[10], a[11]
    delta, delta_row, delta_step = floats(a[12]), a[13], a[14]
    z, z_row, z_step = floats(a[15]), a[16], a[17]
    rate, B, C, D, bias = floats(a[18]), floats(a[19]), floats(a[20]), floats(a[21]), floats(a[22])
    marks, grad, grad_row, grad_step = floats(a[23]), floats(a[24]), a[25], a[26]
    grad_u, grad_delta, grad_z = floats(a[27]), floats(a[28]), floats(a[29])
    grad_rate, grad_B, grad_C, sums = floats(a[30]), floats(a[31]), floats(a[32]), floats(a[33])
    blocks, chunks = (width + BLOCK - 1) // BLOCK, (length + CHUNK - 1) // CHUNK
    dt, inflow, y = (
        np.empty(CHUNK * BLOCK, _f),
        np.empty(CHUNK * BLOCK, _f),
        np.empty(CHUNK * BLOCK, _f),
    )
    g, gx, gt = (
        np.empty(CHUNK * BLOCK, _f),
        np.empty(CHUNK * BLOCK, _f),
        np.empty(CHUNK * BLOCK, _f),
    )
    hs, decays = np.empty((CHUNK + 1) * GROUP * LANES, _f), np.empty(CHUNK * GROUP * LANES, _f)
    sb, sc = np.empty(CHUNK * GROUP * LANES, _f), np.empty(CHUNK * GROUP * LANES, _f)
    back, own_rate, own_sums = (
        np.empty(states * BLOCK, _f),
        np.empty(states * BLOCK, _f),
        np.empty(2 * BLOCK, _f),
    )
    while True:
        task = take(a)
        if task >= batch * blocks:
            return
        row, piece = order[task // blocks], task % blocks
        origin = piece * BLOCK
        wide, real = min(BLOCK, width - origin), lengths[row]
        base = row * length * width + origin
        back[:], own_rate[:], own_sums[:] = _f(0), _f(0), _f(0)
        for chunk in range((real + CHUNK - 1) // CHUNK - 1, -1, -1):
            start = chunk * CHUNK
            steps = min(CHUNK, real - start)
            u_at = row * u_row + start * u_step + origin
            delta_at = row * delta_row + start * delta_step + origin
            z_at = row * z_row + start * z_step + origin
            grad_at = row * grad_row + start * grad_step + origin
            out_at = base + start * width
            enter(
                u,
                u_at,
                u_step,
                delta,
                delta_at,
                delta_step,
                D,
                bias,
                origin,
                soft,
                dt,
                inflow,
                y,
                BLOCK,
                wide,
                steps,
            )
            _enter_gradient(
                grad, grad_at, grad_step, z, z_at, z_step, gated, g, gx, gt, wide, steps
            )
            for n in range(0, states, GROUP):
                sb[:], sc[:] = _f(0), _f(0)
                first = (row * length + start) * states + n
                for j in range(0, wide, LANES):
                    mark = ((row * chunks + chunk) * states + n) * width + origin + j
                    at = n * width + origin + j
                    recall_group(
                        rate,
                        at,
                        width,
                        marks,
                        mark,
                        B,
                        C,
                        first,
                        states,
                        dt,
                        inflow,
                        y,
                        j,
                        BLOCK,
                        steps,
                        hs,
                        decays,
                    )
                    retreat_group(
                        rate,
                        at,
                        width,
                        back,
                        own_rate,
                        n * BLOCK + j,
                        B,
                        C,
                        first,
                        states,
                        dt,
                        inflow,
                        g,
                        gx,
                        gt,
                        j,
                        BLOCK,
                        steps,
                        hs,
                        decays,
                        sb,
                        sc,
                    )
                to = ((piece * batch + row) * length + start) * states + n
                sum_lanes(sb, grad_B, to, states, steps)
                sum_lanes(sc, grad_C, to, states, steps)
            if gated:
                _leave_gate(
                    grad, grad_at, grad_step, z, z_at, z_step, y, grad_z, out_at, width, wide, steps
                )
            _leave(
                u,
                u_at,
                u_step,
                delta,
                delta_at,
                delta_step,
                D,
                bias,
                origin,
                soft,
                dt,
                g,
                gx,
                gt,
                grad_u,
                grad_delta,
                out_at,
                own_sums,
                width,
                wide,
                steps,
            )
        clear(grad_u, base, width, wide, real, length)
        clear(grad_delta, base, width, wide, real, length)
        if gated:
            clear(grad_z, base, width, wide, real, length)
        for j in range(0, wide, LANES):
            for n in range(states):
                store(
                    grad_rate,
                    (row * states + n) * width + origin + j,
                    load(own_rate, n * BLOCK + j),
                )
            for n in range(2):
                store(sums, (row * 2 + n) * width + origin + j, load(own_sums, n * BLOCK + j))
