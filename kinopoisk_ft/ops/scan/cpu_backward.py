"""The backward kernel of the selective scan, run by every thread at once.

Tasks and chunks are those of the forward kernel, time running backwards. The sums over a row's
channels (for B, C) are left per block, those over rows (for A, D, bias) per row, and added up when
all tasks are done: no two write the same place, and the number of threads makes no difference.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit

from kinopoisk_ft.ops.scan.cpu_inputs import (
    CHUNK,
    Problem,
    Spot,
    enter,
    local,
    read_problem,
    row_at,
)
from kinopoisk_ft.ops.scan.cpu_states import GROUP, recall, retreat, sum_lanes
from kinopoisk_ft.ops.simd.denormals import flush_tiny, restore
from kinopoisk_ft.ops.simd.kernel_cache import OPTIONS
from kinopoisk_ft.ops.simd.load_store import clear, read, scratch, write
from kinopoisk_ft.ops.simd.math import LN_2, sigmoid
from kinopoisk_ft.ops.simd.register import LANES, load, prefetch, splat, store
from kinopoisk_ft.ops.simd.threads import await_tasks, bfloats, end_task, floats, take

_f = np.float32


class Gradients(NamedTuple):
    """The output's gradient with its strides, and where the inputs' go; out, u, z as in `Problem`.

    u, delta, z: (batch, length, width). A: (batch, states, width). B, C: (blocks, batch, length,
    states). sums: (batch, 2, width), for D and bias.
    """

    out: Any
    out_row: int
    out_step: int
    u: Any
    delta: Any
    z: Any
    A: Any
    B: Any
    C: Any
    sums: Any


class Work(NamedTuple):
    """Scratch of a thread: by step and channel; by step and state; by state or sum and channel."""

    dt: Any
    inflow: Any
    y: Any
    g: Any
    gx: Any
    gt: Any
    hs: Any
    decays: Any
    sb: Any
    sc: Any
    back: Any
    A: Any
    sums: Any


@njit(forceinline=True)
def _room(states: int) -> Work:
    wide, group = CHUNK * BLOCK, CHUNK * GROUP * LANES
    return Work(
        scratch(wide), scratch(wide), scratch(wide), scratch(wide), scratch(wide), scratch(wide),
        scratch(group + GROUP * LANES), scratch(group), scratch(group), scratch(group),
        scratch(states * BLOCK), scratch(states * BLOCK), scratch(2 * BLOCK),
    )  # fmt: skip


@njit(**OPTIONS)
def _enter_gradient(p: Problem, spot: Spot, to: Gradients, w: Work) -> None:
    """Read a chunk of the output's gradient and take it back through the gate."""
    at, z_at = row_at(spot, to.out_row, to.out_step), row_at(spot, p.z_row, p.z_step)
    for t in range(spot.steps):
        for j in range(0, spot.wide, LANES):
            prefetch(to.out, at + (t - CHUNK) * to.out_step + j)
            value = read(to.out, at + t * to.out_step + j)
            if p.gated:
                prefetch(p.z, z_at + (t - CHUNK) * p.z_step + j)
                gate = read(p.z, z_at + t * p.z_step + j)
                value = value * gate * sigmoid(gate)
            store(w.g, local(t, j), value)
            store(w.gx, local(t, j), splat(_f(0)))
            store(w.gt, local(t, j), splat(_f(0)))


@njit(**OPTIONS)
def _leave_gate(p: Problem, spot: Spot, to: Gradients, y: Any) -> None:
    """Write the gradient of z; y: the output before the gate."""
    at, z_at = row_at(spot, to.out_row, to.out_step), row_at(spot, p.z_row, p.z_step)
    out_at = row_at(spot, p.length * p.width, p.width)
    for t in range(spot.steps):
        for j in range(0, spot.wide, LANES):
            gate = read(p.z, z_at + t * p.z_step + j)
            s = sigmoid(gate)
            slope = s + s * gate * (splat(_f(1)) - s)
            value = read(to.out, at + t * to.out_step + j) * load(y, local(t, j)) * slope
            prefetch(to.z, out_at + (t - CHUNK) * p.width + j)
            write(to.z, out_at + t * p.width + j, value)


@njit(**OPTIONS)
def _leave(p: Problem, spot: Spot, to: Gradients, w: Work) -> None:
    """Write the gradients of u and delta; add up those of D and bias."""
    u_at, delta_at = row_at(spot, p.u_row, p.u_step), row_at(spot, p.delta_row, p.delta_step)
    out_at = row_at(spot, p.length * p.width, p.width)
    for j in range(0, spot.wide, LANES):
        skip, offset = load(p.D, spot.origin + j), load(p.bias, spot.origin + j)
        sum_skip, sum_offset = load(w.sums, j), load(w.sums, BLOCK + j)
        for t in range(spot.steps):
            i, k = local(t, j), out_at + t * p.width + j
            x, g, gx = read(p.u, u_at + t * p.u_step + j), load(w.g, i), load(w.gx, i)
            slope = load(w.gt, i) * splat(LN_2) + gx * x
            if p.soft:
                slope = slope * sigmoid(load(p.delta, delta_at + t * p.delta_step + j) + offset)
            prefetch(to.u, k - CHUNK * p.width)
            prefetch(to.delta, k - CHUNK * p.width)
            write(to.u, k, gx * load(w.dt, i) + g * skip)
            store(to.delta, k, slope)
            sum_skip, sum_offset = g * x + sum_skip, sum_offset + slope
        store(w.sums, j, sum_skip)
        store(w.sums, BLOCK + j, sum_offset)


@njit(**OPTIONS)
def _chunk(p: Problem, spot: Spot, to: Gradients, w: Work, marks: Any) -> None:
    enter(p, spot, -CHUNK, w.dt, w.inflow, w.y)
    _enter_gradient(p, spot, to, w)
    piece = spot.origin // BLOCK
    for n in range(0, p.states, GROUP):
        w.sb[:] = 0
        w.sc[:] = 0
        for j in range(0, spot.wide, LANES):
            recall(p, spot, n, j, marks, w.dt, w.inflow, w.y, w.hs, w.decays)
            retreat(
                p, spot, n, j, w.dt, w.inflow, w.hs, w.decays,
                w.g, w.gx, w.gt, w.back, w.A, n * BLOCK + j, BLOCK, w.sb, w.sc,
            )  # fmt: skip
        at = ((piece * p.batch + spot.row) * p.length + spot.start) * p.states + n
        sum_lanes(w.sb, to.B, at, p.states, spot.steps)
        sum_lanes(w.sc, to.C, at, p.states, spot.steps)
    if p.gated:
        _leave_gate(p, spot, to, w.y)
    _leave(p, spot, to, w)


@njit(**OPTIONS)
def _finish(p: Problem, row: int, origin: int, wide: int, to: Gradients, w: Work) -> None:
    """Write what was added up over the row; zeros beyond its length."""
    real, piece, pieces = p.lengths[row], origin // BLOCK, (p.width + BLOCK - 1) // BLOCK
    clear(to.u, row, p.length, p.width, real, piece, pieces)
    clear(to.delta, row, p.length, p.width, real, piece, pieces)
    if p.gated:
        clear(to.z, row, p.length, p.width, real, piece, pieces)
    clear(to.B, piece * p.batch + row, p.length, p.states, real, 0, 1)
    clear(to.C, piece * p.batch + row, p.length, p.states, real, 0, 1)
    for j in range(0, wide, LANES):
        for n in range(p.states):
            store(to.A, (row * p.states + n) * p.width + origin + j, load(w.A, n * BLOCK + j))
        for i in range(2):
            store(to.sums, (row * 2 + i) * p.width + origin + j, load(w.sums, i * BLOCK + j))


@njit(**OPTIONS)
def _backward(a: Any, u: Any, z: Any, out: Any, grad_u: Any, grad_z: Any) -> None:
    """Fill every gradient of a `Problem` from the saved states and the output's gradient.

    a[34] counts the tasks that are done.
    """
    mode = flush_tiny()
    p, marks, w = read_problem(a, u, z), floats(a[23]), _room(a[4])
    to = Gradients(
        out, a[25], a[26], grad_u, floats(a[28]), grad_z,
        floats(a[30]), floats(a[31]), floats(a[32]), floats(a[33]),
    )  # fmt: skip
    blocks = (p.width + BLOCK - 1) // BLOCK
    tasks = p.batch * blocks
    task = take(a)
    while task < tasks:
        row, origin = p.order[task // blocks], task % blocks * BLOCK
        wide, real = min(BLOCK, p.width - origin), p.lengths[row]
        w.back[:] = 0
        w.A[:] = 0
        w.sums[:] = 0
        for start in range((real - 1) // CHUNK * CHUNK, -1, -CHUNK):
            spot = Spot(row, origin, wide, start, min(CHUNK, real - start))
            _chunk(p, spot, to, w, marks)
        _finish(p, row, origin, wide, to, w)
        end_task(a, 34)
        task = take(a)
    await_tasks(a, 34, tasks)
    sums = Sums(
        a[35], a[36], floats(a[37]), floats(a[38]), floats(a[39]), floats(a[40]), floats(a[41])
    )
    while gather(p, to.A, to.B, to.C, to.sums, task - tasks, sums):
        task = take(a)
    restore(mode)


def backward_float32(a: Any) -> None:
    """On float32 u, z and out."""
    _backward(a, floats(a[9]), floats(a[15]), floats(a[24]), floats(a[27]), floats(a[29]))


def backward_bfloat16(a: Any) -> None:
    """On bfloat16 u, z and out."""
    _backward(a, bfloats(a[9]), bfloats(a[15]), bfloats(a[24]), bfloats(a[27]), bfloats(a[29]))


BLOCK = 128  # channels of a task of the backward kernel
_ELEMENTS = 4096  # of a piece of work here


class Sums(NamedTuple):
    """Where the sums go: A (d_inner, d_state); B, C (batch, length, states); D, bias (width,)."""

    d_inner: int
    d_state: int
    A: Any
    B: Any
    C: Any
    D: Any
    bias: Any


@njit(**OPTIONS)
def _add(parts: Any, count: int, stride: int, i: int) -> Any:
    """Return the sum over n < count of a register at parts[n * stride + i], in that order."""
    found = load(parts, i)
    for n in range(1, count):
        found = found + load(parts, n * stride + i)
    return found


@njit(**OPTIONS)
def _over_blocks(parts: Any, count: int, size: int, piece: int, out: Any) -> None:
    first, last = piece * _ELEMENTS, min((piece + 1) * _ELEMENTS, size)
    whole = last - last % LANES
    for i in range(first, whole, LANES):
        store(out, i, _add(parts, count, size, i))
    for i in range(whole, last):
        found = parts[i]
        for n in range(1, count):
            found += parts[n * size + i]
        out[i] = found


@njit(**OPTIONS)
def _over_rows(p: Problem, A: Any, sums: Any, piece: int, to: Sums, room: Any) -> None:
    first, last = piece * BLOCK, min((piece + 1) * BLOCK, p.width)
    for j in range(first, last, LANES):
        store(to.D, j, _add(sums, p.batch, 2 * p.width, j))
        store(to.bias, j, _add(sums, p.batch, 2 * p.width, p.width + j))
        for n in range(to.d_state):
            store(room, 0, _add(A, p.batch, p.states * p.width, n * p.width + j))
            for i in range(min(LANES, to.d_inner - j)):
                to.A[(j + i) * to.d_state + n] = room[i]


@njit(**OPTIONS)
def gather(p: Problem, A: Any, B: Any, C: Any, sums: Any, piece: int, to: Sums) -> bool:
    """Do a piece of the work on the parts; returns whether there was such a piece."""
    size = p.batch * p.length * p.states
    flat, blocks = (size + _ELEMENTS - 1) // _ELEMENTS, (p.width + BLOCK - 1) // BLOCK
    if piece < flat:
        _over_blocks(B, blocks, size, piece, to.B)
    elif piece < 2 * flat:
        _over_blocks(C, blocks, size, piece - flat, to.C)
    elif piece < 2 * flat + blocks:
        _over_rows(p, A, sums, piece - 2 * flat, to, scratch(LANES))
    else:
        return False
    return True
