"""Run the recurrence of the selective scan over one chunk.

A chunk is a range of time steps and a block of channels. The functions process `GROUP` states of
`LANES` channels at a time. The argument `n` is the index of the first of these states, and `j` is
the index of the first of these channels within the block. The code repeats lines for each state of
a group, because in a loop the states would be in memory instead of registers.
"""

from __future__ import annotations

from typing import Any

from numba import njit

from kinopoisk_ft.ops.scan.cpu_inputs import (
    Chunk,
    ScanInputs,
    locate_in_saved,
    locate_in_scratch,
)
from kinopoisk_ft.ops.simd.kernel_cache import OPTIONS
from kinopoisk_ft.ops.simd.load_store import load, prefetch, store
from kinopoisk_ft.ops.simd.math import LOG2_E, exp2
from kinopoisk_ft.ops.simd.register import LANES, splat, sum_lanes

# States per group.
GROUP = 4
# Elements between two steps in scratch of shape (steps, GROUP, LANES).
_STEP = GROUP * LANES


@njit(forceinline=True)
def load_group(memory: Any, at: int, stride: int) -> Any:
    """Load `GROUP` vectors that start at memory[at], memory[at + stride] and so on."""
    return (
        load(memory, at),
        load(memory, at + stride),
        load(memory, at + 2 * stride),
        load(memory, at + 3 * stride),
    )


@njit(forceinline=True)
def store_group(memory: Any, at: int, stride: int, group: Any) -> None:
    """Store `GROUP` vectors at memory[at], memory[at + stride] and so on."""
    store(memory, at, group[0])
    store(memory, at + stride, group[1])
    store(memory, at + 2 * stride, group[2])
    store(memory, at + 3 * stride, group[3])


@njit(forceinline=True)
def _load_rates(inputs: ScanInputs, chunk: Chunk, n: int, j: int) -> Any:
    # exp(dt A) = 2**(dt A log2(e)). The factor log2(e) is applied once per chunk instead of at each
    # step.
    a, b, c, d = load_group(inputs.A, n * inputs.width + chunk.origin + j, inputs.width)
    scale = splat(LOG2_E)
    return a * scale, b * scale, c * scale, d * scale


@njit(forceinline=True)
def _step(h: Any, decay: Any, inflow: Any, b: Any, c: Any, y: Any) -> Any:
    # h_t = exp(dt_t A) h_{t-1} + dt_t u_t B_t, with inflow = dt_t u_t.
    h = decay * h + inflow * splat(b)
    return h, h * splat(c) + y


@njit(**OPTIONS)
def advance(
    inputs: ScanInputs, chunk: Chunk, n: int, j: int, h: Any, at: int, dt: Any, inflow: Any, y: Any
) -> None:
    """Advance a group of states by the steps of a chunk, and add C h to y at each step.

    h: array of states. The group starts at index `at`, and is updated in place.
    """
    r0, r1, r2, r3 = _load_rates(inputs, chunk, n, j)
    h0, h1, h2, h3 = load_group(h, at, LANES)
    B, C = inputs.B, inputs.C
    # k is the index of the step in B and C (batch, length, states).
    k = (chunk.row * inputs.length + chunk.start) * inputs.states + n
    for t in range(chunk.steps):
        i = locate_in_scratch(t, j)
        d, x, s = load(dt, i), load(inflow, i), load(y, i)
        h0, s = _step(h0, exp2(d * r0), x, B[k], C[k], s)
        h1, s = _step(h1, exp2(d * r1), x, B[k + 1], C[k + 1], s)
        h2, s = _step(h2, exp2(d * r2), x, B[k + 2], C[k + 2], s)
        h3, s = _step(h3, exp2(d * r3), x, B[k + 3], C[k + 3], s)
        store(y, i, s)
        k += inputs.states
    store_group(h, at, LANES, (h0, h1, h2, h3))


@njit(**OPTIONS)
def recompute(
    inputs: ScanInputs, chunk: Chunk, n: int, j: int, saved: Any, dt: Any, inflow: Any, y: Any,
    states: Any, decays: Any,
) -> None:  # fmt: skip
    """Advance a group of states like `advance`, and store the states of all steps.

    Args:
        saved: the states before each chunk.
        states: (steps + 1, GROUP, LANES). The states before the first step and after each step are
            written here.
        decays: (steps, GROUP, LANES). The decay of each step is written here.
    """
    saved_at = locate_in_saved(inputs, chunk, n, j)
    # The backward pass reads the saved states of the previous chunk next.
    for i in range(GROUP):
        prefetch(saved, saved_at + (i - inputs.states) * inputs.width)
    r0, r1, r2, r3 = _load_rates(inputs, chunk, n, j)
    h0, h1, h2, h3 = load_group(saved, saved_at, inputs.width)
    store_group(states, 0, LANES, (h0, h1, h2, h3))
    B, C = inputs.B, inputs.C
    k = (chunk.row * inputs.length + chunk.start) * inputs.states + n
    for t in range(chunk.steps):
        i, m = locate_in_scratch(t, j), t * _STEP
        d, x, s = load(dt, i), load(inflow, i), load(y, i)
        a0, a1, a2, a3 = exp2(d * r0), exp2(d * r1), exp2(d * r2), exp2(d * r3)
        h0, s = _step(h0, a0, x, B[k], C[k], s)
        h1, s = _step(h1, a1, x, B[k + 1], C[k + 1], s)
        h2, s = _step(h2, a2, x, B[k + 2], C[k + 2], s)
        h3, s = _step(h3, a3, x, B[k + 3], C[k + 3], s)
        store(y, i, s)
        store_group(decays, m, LANES, (a0, a1, a2, a3))
        store_group(states, m + _STEP, LANES, (h0, h1, h2, h3))
        k += inputs.states


@njit(forceinline=True)
def _step_back(
    grad_h: Any, grad_a: Any, h: Any, before: Any, a: Any, r: Any, b: Any, c: Any, d: Any, x: Any,
    g: Any, grad_x: Any, grad_d: Any, grad_B: Any, grad_C: Any, m: int,
) -> Any:  # fmt: skip
    # Backpropagate one state through step t. h, before, a, b, c, d and x are h_t, h_{t-1},
    # exp(dt_t A), B_t, C_t, dt_t and x_t, where x_t is the inflow. g is the gradient of y_t. r is
    # A log2(e), so grad_d is log2(e) times the gradient of dt_t. m is the index of this step and
    # state in grad_B and grad_C.
    # grad_h is the gradient of h_t without the part from y_t. The gradient of h_{t-1} is returned.
    # grad_a is summed over the steps, and grad_x and grad_d over the states.
    # Output of the step: y_t = C_t h_t + ...
    grad_h = g * splat(c) + grad_h
    store(grad_C, m, g * h + load(grad_C, m))
    # Inflow of the step: h_t = ... + B_t x_t.
    store(grad_B, m, grad_h * x + load(grad_B, m))
    grad_x = grad_h * splat(b) + grad_x
    # Decay of the step: h_t = exp(dt_t A) h_{t-1} + ... The gradient of the exponent dt_t A is
    # grad_h exp(dt_t A) h_{t-1}.
    grad_h = grad_h * a
    grad_exponent = grad_h * before
    return grad_h, grad_exponent * d + grad_a, grad_x, grad_exponent * r + grad_d


@njit(**OPTIONS)
def backpropagate(
    inputs: ScanInputs, chunk: Chunk, n: int, j: int, dt: Any, inflow: Any, states: Any,
    decays: Any, grad_y: Any, grad_inflow: Any, grad_dt: Any, grad_h: Any, grad_A: Any, at: int,
    stride: int, grad_B: Any, grad_C: Any,
) -> None:  # fmt: skip
    """Backpropagate a group of states through a chunk.

    The group's contributions are added to grad_inflow, grad_dt, grad_A, grad_B and grad_C.

    Args:
        inflow: dt u.
        states, decays: written by `recompute`.
        grad_y: gradient of y.
        grad_inflow: gradient of inflow.
        grad_dt: log2(e) times the part of dt's gradient that comes from the decays exp(A dt).
        grad_h: gradient of the states after the chunk. It is overwritten with the gradient of the
            states before the chunk.
        grad_A: gradient of A.
        at: index of the group's first vector in grad_h and grad_A.
        stride: distance in elements between the group's vectors in grad_h and grad_A.
        grad_B, grad_C: (steps, GROUP, LANES), gradients of B and C for each lane.
    """
    r0, r1, r2, r3 = _load_rates(inputs, chunk, n, j)
    # Variables of each of the 4 states: r rate, p gradient of h, q gradient of A, h and e the state
    # after and before the step, a decay.
    p0, p1, p2, p3 = load_group(grad_h, at, stride)
    q0, q1, q2, q3 = load_group(grad_A, at, stride)
    h0, h1, h2, h3 = load_group(states, chunk.steps * _STEP, LANES)
    B, C = inputs.B, inputs.C
    k = (chunk.row * inputs.length + chunk.start + chunk.steps) * inputs.states + n
    for t in range(chunk.steps - 1, -1, -1):
        i, m = locate_in_scratch(t, j), t * _STEP
        k -= inputs.states
        # u and v are the gradients of inflow and dt.
        d, x, g = load(dt, i), load(inflow, i), load(grad_y, i)
        u, v = load(grad_inflow, i), load(grad_dt, i)
        e0, e1, e2, e3 = load_group(states, m, LANES)
        a0, a1, a2, a3 = load_group(decays, m, LANES)
        b, c = B[k], C[k]
        p0, q0, u, v = _step_back(p0, q0, h0, e0, a0, r0, b, c, d, x, g, u, v, grad_B, grad_C, m)
        m, b, c = m + LANES, B[k + 1], C[k + 1]
        p1, q1, u, v = _step_back(p1, q1, h1, e1, a1, r1, b, c, d, x, g, u, v, grad_B, grad_C, m)
        m, b, c = m + LANES, B[k + 2], C[k + 2]
        p2, q2, u, v = _step_back(p2, q2, h2, e2, a2, r2, b, c, d, x, g, u, v, grad_B, grad_C, m)
        m, b, c = m + LANES, B[k + 3], C[k + 3]
        p3, q3, u, v = _step_back(p3, q3, h3, e3, a3, r3, b, c, d, x, g, u, v, grad_B, grad_C, m)
        h0, h1, h2, h3 = e0, e1, e2, e3
        store(grad_inflow, i, u)
        store(grad_dt, i, v)
    store_group(grad_h, at, stride, (p0, p1, p2, p3))
    store_group(grad_A, at, stride, (q0, q1, q2, q3))


@njit(**OPTIONS)
def store_lane_sums(partial: Any, out: Any, at: int, stride: int, steps: int) -> None:
    """Sum `partial` (steps, GROUP, LANES) over the lanes, and write the sums to `out`.

    The sums of step t are written to `out` from element `at + t * stride`.
    """
    for t in range(steps):
        for n in range(GROUP):
            out[at + t * stride + n] = sum_lanes(load(partial, t * _STEP + n * LANES))
