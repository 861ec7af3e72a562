"""Selective scan on a CPU: what happens within one chunk of time, in registers.

For `LANES` channels and `GROUP` states at a time the states of a chunk of `CHUNK` steps stay in
registers. Arrays are flat float32. Names: `rate` = A log2(e), laid out (states, width); `dt`, the
step after softplus; `inflow` = dt u; `B`, `C` laid out (time, states).
"""

from __future__ import annotations

from typing import Any

from numba import njit

from kinopoisk_ft.ops.kernel_cache import CACHED
from kinopoisk_ft.ops.lane_math import exp2
from kinopoisk_ft.ops.lanes import LANES, load, splat, store, total

CHUNK = 32
GROUP = 4
OPTIONS = {"cache": CACHED, "nogil": True, "error_model": "numpy"}


@njit(forceinline=True)
def _load_group(array: Any, at: int, jump: int) -> Any:
    return (
        load(array, at),
        load(array, at + jump),
        load(array, at + 2 * jump),
        load(array, at + 3 * jump),
    )


@njit(forceinline=True)
def _store_group(array: Any, at: int, jump: int, group: Any) -> None:
    store(array, at, group[0])
    store(array, at + jump, group[1])
    store(array, at + 2 * jump, group[2])
    store(array, at + 3 * jump, group[3])


@njit(forceinline=True)
def _advance(h: Any, a: Any, inflow: Any, b: Any, c: Any, y: Any) -> Any:
    h = a * h + inflow * splat(b)
    return h, h * splat(c) + y


@njit(**OPTIONS)
def advance_group(
    rate: Any, at: int, jump: int, h: Any, local: int, B: Any, C: Any, first: int, states: int,
    dt: Any, inflow: Any, y: Any, j: int, block: int, steps: int,
) -> None:  # fmt: skip
    """Advance GROUP states of LANES channels over one chunk; add C h to y."""
    r0, r1, r2, r3 = _load_group(rate, at, jump)
    h0, h1, h2, h3 = _load_group(h, local, LANES)
    for t in range(steps):
        i, k = t * block + j, first + t * states
        d, x, s = load(dt, i), load(inflow, i), load(y, i)
        h0, s = _advance(h0, exp2(d * r0), x, B[k], C[k], s)
        h1, s = _advance(h1, exp2(d * r1), x, B[k + 1], C[k + 1], s)
        h2, s = _advance(h2, exp2(d * r2), x, B[k + 2], C[k + 2], s)
        h3, s = _advance(h3, exp2(d * r3), x, B[k + 3], C[k + 3], s)
        store(y, i, s)
    _store_group(h, local, LANES, (h0, h1, h2, h3))


@njit(**OPTIONS)
def recall_group(
    rate: Any, at: int, jump: int, marks: Any, mark: int, B: Any, C: Any, first: int, states: int,
    dt: Any, inflow: Any, y: Any, j: int, block: int, steps: int, hs: Any, decays: Any,
) -> None:  # fmt: skip
    """As `advance_group` from the saved states, keeping every state and decay of the chunk."""
    r0, r1, r2, r3 = _load_group(rate, at, jump)
    h0, h1, h2, h3 = _load_group(marks, mark, jump)
    _store_group(hs, 0, LANES, (h0, h1, h2, h3))
    for t in range(steps):
        i, k, m = t * block + j, first + t * states, t * GROUP * LANES
        d, x, s = load(dt, i), load(inflow, i), load(y, i)
        a0, a1, a2, a3 = exp2(d * r0), exp2(d * r1), exp2(d * r2), exp2(d * r3)
        h0, s = _advance(h0, a0, x, B[k], C[k], s)
        h1, s = _advance(h1, a1, x, B[k + 1], C[k + 1], s)
        h2, s = _advance(h2, a2, x, B[k + 2], C[k + 2], s)
        h3, s = _advance(h3, a3, x, B[k + 3], C[k + 3], s)
        store(y, i, s)
        _store_group(decays, m, LANES, (a0, a1, a2, a3))
        _store_group(hs, m + GROUP * LANES, LANES, (h0, h1, h2, h3))


@njit(forceinline=True)
def _retreat(
    gh: Any, ga: Any, h: Any, before: Any, a: Any, r: Any, b: Any, c: Any,
    d: Any, x: Any, g: Any, gx: Any, gt: Any, sb: Any, sc: Any, m: int,
) -> Any:  # fmt: skip
    """One state, one step back. gh: gradient of the state that the next step handed down."""
    gh = g * splat(c) + gh
    store(sc, m, g * h + load(sc, m))
    store(sb, m, gh * x + load(sb, m))
    gx = gh * splat(b) + gx
    gh = gh * a
    q = gh * before
    return gh, q * d + ga, gx, q * r + gt


@njit(**OPTIONS)
def retreat_group(
    rate: Any, at: int, jump: int, back: Any, grad_rate: Any, local: int, B: Any, C: Any,
    first: int, states: int, dt: Any, inflow: Any, g: Any, gx: Any, gt: Any,
    j: int, block: int, steps: int,    hs: Any, decays: Any, sb: Any, sc: Any,
) -> None:  # fmt: skip
    """Take the gradient of a chunk back through GROUP states of LANES channels.

    back: gradient of the states carried between chunks; gx, gt: of inflow and dt (times log2(e));
    sb, sc: of B and C, lane by lane.
    """
    r0, r1, r2, r3 = _load_group(rate, at, jump)
    p0, p1, p2, p3 = _load_group(back, local, block)
    q0, q1, q2, q3 = _load_group(grad_rate, local, block)
    h0, h1, h2, h3 = _load_group(hs, steps * GROUP * LANES, LANES)
    for t in range(steps - 1, -1, -1):
        i, k, m = t * block + j, first + t * states, t * GROUP * LANES
        d, x, w, u, v = load(dt, i), load(inflow, i), load(g, i), load(gx, i), load(gt, i)
        e0, e1, e2, e3 = _load_group(hs, m, LANES)
        a0, a1, a2, a3 = _load_group(decays, m, LANES)
        p0, q0, u, v = _retreat(p0, q0, h0, e0, a0, r0, B[k], C[k], d, x, w, u, v, sb, sc, m)
        m += LANES
        p1, q1, u, v = _retreat(
            p1, q1, h1, e1, a1, r1, B[k + 1], C[k + 1], d, x, w, u, v, sb, sc, m
        )
        m += LANES
        p2, q2, u, v = _retreat(
            p2, q2, h2, e2, a2, r2, B[k + 2], C[k + 2], d, x, w, u, v, sb, sc, m
        )
        m += LANES
        p3, q3, u, v = _retreat(
            p3, q3, h3, e3, a3, r3, B[k + 3], C[k + 3], d, x, w, u, v, sb, sc, m
        )
        h0, h1, h2, h3 = e0, e1, e2, e3
        store(gx, i, u)
        store(gt, i, v)
    _store_group(back, local, block, (p0, p1, p2, p3))
    _store_group(grad_rate, local, block, (q0, q1, q2, q3))


@njit(**OPTIONS)
def sum_lanes(partial: Any, out: Any, at: int, jump: int, steps: int) -> None:
    """Write the lanes' sums of `partial` (steps, GROUP, LANES) to `out[at + t * jump + n]`."""
    for t in range(steps):
        for n in range(GROUP):
            out[at + t * jump + n] = total(load(partial, (t * GROUP + n) * LANES))
