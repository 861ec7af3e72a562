"""The recurrence of the selective scan over one chunk, with the states in registers.

`GROUP` states of `LANES` channels at a time; `n` is the first of the states, `j` of the channels
within the task's block. The group is written out: only so do the states stay in registers.
"""

from __future__ import annotations

from typing import Any

from numba import njit

from kinopoisk_ft.ops.scan.cpu_inputs import Problem, Spot, local, mark_at
from kinopoisk_ft.ops.simd.kernel_cache import OPTIONS
from kinopoisk_ft.ops.simd.math import LOG2_E, exp2
from kinopoisk_ft.ops.simd.register import LANES, load, prefetch, splat, store, store_totals

GROUP = 4
_JUMP = GROUP * LANES


@njit(forceinline=True)
def load_group(array: Any, at: int, jump: int) -> Any:
    """Read GROUP registers that lie `jump` apart."""
    return (
        load(array, at),
        load(array, at + jump),
        load(array, at + 2 * jump),
        load(array, at + 3 * jump),
    )


@njit(forceinline=True)
def store_group(array: Any, at: int, jump: int, group: Any) -> None:
    """Write GROUP registers, `jump` apart."""
    store(array, at, group[0])
    store(array, at + jump, group[1])
    store(array, at + 2 * jump, group[2])
    store(array, at + 3 * jump, group[3])


@njit(forceinline=True)
def _rates(p: Problem, spot: Spot, n: int, j: int) -> Any:
    """Read A of a group, for powers of two."""
    a, b, c, d = load_group(p.A, n * p.width + spot.origin + j, p.width)
    scale = splat(LOG2_E)
    return a * scale, b * scale, c * scale, d * scale


@njit(forceinline=True)
def _advance(h: Any, a: Any, inflow: Any, b: Any, c: Any, y: Any) -> Any:
    h = a * h + inflow * splat(b)
    return h, h * splat(c) + y


@njit(**OPTIONS)
def advance(
    p: Problem, spot: Spot, n: int, j: int, h: Any, at: int, dt: Any, inflow: Any, y: Any
) -> None:
    """Advance the states h[at:] over a chunk; add C h to y."""
    r0, r1, r2, r3 = _rates(p, spot, n, j)
    h0, h1, h2, h3 = load_group(h, at, LANES)
    B, C, k = p.B, p.C, (spot.row * p.length + spot.start) * p.states + n
    for t in range(spot.steps):
        i = local(t, j)
        d, x, s = load(dt, i), load(inflow, i), load(y, i)
        h0, s = _advance(h0, exp2(d * r0), x, B[k], C[k], s)
        h1, s = _advance(h1, exp2(d * r1), x, B[k + 1], C[k + 1], s)
        h2, s = _advance(h2, exp2(d * r2), x, B[k + 2], C[k + 2], s)
        h3, s = _advance(h3, exp2(d * r3), x, B[k + 3], C[k + 3], s)
        store(y, i, s)
        k += p.states
    store_group(h, at, LANES, (h0, h1, h2, h3))


@njit(**OPTIONS)
def recall(
    p: Problem, spot: Spot, n: int, j: int, marks: Any, dt: Any, inflow: Any, y: Any,
    hs: Any, decays: Any,
) -> None:  # fmt: skip
    """As `advance` from the saved states; keep states hs (steps + 1, GROUP, LANES) and decays."""
    mark = mark_at(p, spot, n, j)
    for i in range(GROUP):
        prefetch(marks, mark + (i - p.states) * p.width)
    r0, r1, r2, r3 = _rates(p, spot, n, j)
    h0, h1, h2, h3 = load_group(marks, mark, p.width)
    store_group(hs, 0, LANES, (h0, h1, h2, h3))
    B, C, k = p.B, p.C, (spot.row * p.length + spot.start) * p.states + n
    for t in range(spot.steps):
        i, m = local(t, j), t * _JUMP
        d, x, s = load(dt, i), load(inflow, i), load(y, i)
        a0, a1, a2, a3 = exp2(d * r0), exp2(d * r1), exp2(d * r2), exp2(d * r3)
        h0, s = _advance(h0, a0, x, B[k], C[k], s)
        h1, s = _advance(h1, a1, x, B[k + 1], C[k + 1], s)
        h2, s = _advance(h2, a2, x, B[k + 2], C[k + 2], s)
        h3, s = _advance(h3, a3, x, B[k + 3], C[k + 3], s)
        store(y, i, s)
        store_group(decays, m, LANES, (a0, a1, a2, a3))
        store_group(hs, m + _JUMP, LANES, (h0, h1, h2, h3))
        k += p.states


@njit(forceinline=True)
def _retreat(
    gh: Any, ga: Any, h: Any, before: Any, a: Any, r: Any, b: Any, c: Any,
    d: Any, x: Any, g: Any, gx: Any, gt: Any, sb: Any, sc: Any, m: int,
) -> Any:  # fmt: skip
    """One state, one step back. gh: its gradient as the next step handed it down."""
    gh = g * splat(c) + gh
    store(sc, m, g * h + load(sc, m))
    store(sb, m, gh * x + load(sb, m))
    gx = gh * splat(b) + gx
    gh = gh * a
    q = gh * before
    return gh, q * d + ga, gx, q * r + gt


@njit(**OPTIONS)
def retreat(
    p: Problem, spot: Spot, n: int, j: int, dt: Any, inflow: Any, hs: Any, decays: Any,
    g: Any, gx: Any, gt: Any, back: Any, own_A: Any, at: int, jump: int, sb: Any, sc: Any,
) -> None:  # fmt: skip
    """Take g, the gradient of y, back through a chunk.

    Adds to gx and gt, the gradients of inflow and (over log2(e)) dt; to sb and sc, those of B and
    C by lane (steps, GROUP, LANES); to own_A[at:], that of A. back[at:] is the gradient of
    the states, handed from chunk to chunk.
    """
    r0, r1, r2, r3 = _rates(p, spot, n, j)
    p0, p1, p2, p3 = load_group(back, at, jump)
    q0, q1, q2, q3 = load_group(own_A, at, jump)
    h0, h1, h2, h3 = load_group(hs, spot.steps * _JUMP, LANES)
    B, C, k = p.B, p.C, (spot.row * p.length + spot.start + spot.steps) * p.states + n
    for t in range(spot.steps - 1, -1, -1):
        i, m = local(t, j), t * _JUMP
        k -= p.states
        d, x, w, u, v = load(dt, i), load(inflow, i), load(g, i), load(gx, i), load(gt, i)
        e0, e1, e2, e3 = load_group(hs, m, LANES)
        a0, a1, a2, a3 = load_group(decays, m, LANES)
        p0, q0, u, v = _retreat(p0, q0, h0, e0, a0, r0, B[k], C[k], d, x, w, u, v, sb, sc, m)
        m, b, c = m + LANES, B[k + 1], C[k + 1]
        p1, q1, u, v = _retreat(p1, q1, h1, e1, a1, r1, b, c, d, x, w, u, v, sb, sc, m)
        m, b, c = m + LANES, B[k + 2], C[k + 2]
        p2, q2, u, v = _retreat(p2, q2, h2, e2, a2, r2, b, c, d, x, w, u, v, sb, sc, m)
        m, b, c = m + LANES, B[k + 3], C[k + 3]
        p3, q3, u, v = _retreat(p3, q3, h3, e3, a3, r3, b, c, d, x, w, u, v, sb, sc, m)
        h0, h1, h2, h3 = e0, e1, e2, e3
        store(gx, i, u)
        store(gt, i, v)
    store_group(back, at, jump, (p0, p1, p2, p3))
    store_group(own_A, at, jump, (q0, q1, q2, q3))


@njit(**OPTIONS)
def sum_lanes(partial: Any, out: Any, at: int, jump: int, steps: int) -> None:
    """Write the lanes' sums of `partial` (steps, GROUP, LANES) to `out[at + t * jump + n]`."""
    for t in range(steps):
        store_totals(out, at + t * jump, *load_group(partial, t * _JUMP, LANES))
