"""Compute the backward pass of the selective scan on a CPU.

A task is one row of the batch and one block of channels. The chunks of a row are processed backward
in time.

The gradients of B and C are sums over channels, and the gradients of A and D are sums over rows, so
several tasks contribute to each of them. Each task writes its partial sums to separate memory, and
the caller adds them, so that the result does not depend on the number of threads.

The int64 table of the kernel (see simd/threads.py) contains:

- 0: the number of started tasks
- 1 to 19: the fields of `ScanInputs`
- 20: the address of the saved states
- 21 to 30: the fields of `Gradients`
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit

from kinopoisk_ft.ops.scan.cpu_inputs import (
    CHUNK,
    Chunk,
    ScanInputs,
    load_chunk,
    locate_in_scratch,
    locate_in_tensor,
    unpack_inputs,
)
from kinopoisk_ft.ops.scan.cpu_states import GROUP, backpropagate, recompute, store_lane_sums
from kinopoisk_ft.ops.simd.denormals import flush_denormals, restore_mode
from kinopoisk_ft.ops.simd.kernel_cache import OPTIONS
from kinopoisk_ft.ops.simd.load_store import allocate, load, prefetch, store, zero_padding
from kinopoisk_ft.ops.simd.math import LN_2, sigmoid
from kinopoisk_ft.ops.simd.register import LANES, splat
from kinopoisk_ft.ops.simd.threads import as_bfloat16, as_float32, take_task

_f = np.float32
# Channels per task.
BLOCK = 128


class Gradients(NamedTuple):
    """Pointers to the gradients of the output and of the inputs."""

    # Gradient of the output, (batch, length, width) in the dtype of u, with strides over batch and
    # time in elements.
    out: Any
    out_row: int
    out_step: int
    # (batch, length, width). The gradients of u and z have the dtype of u; the others are float32.
    u: Any
    delta: Any
    z: Any
    # One gradient per row: (batch, states, width).
    A: Any
    # One gradient per block of channels: (blocks, batch, length, states).
    B: Any
    C: Any
    # One gradient per row: (batch, width).
    D: Any


class Scratch(NamedTuple):
    """Float32 scratch memory of one thread."""

    # For one chunk: a number for each step and channel, in the layout of `locate_in_scratch`.
    dt: Any
    inflow: Any
    y: Any
    grad_y: Any
    grad_inflow: Any
    grad_dt: Any
    # For a group of states in one chunk: (steps + 1, GROUP, LANES), then (steps, GROUP, LANES).
    states: Any
    decays: Any
    grad_b: Any
    grad_c: Any
    # For one task: (states, BLOCK). grad_h is passed on from chunk to chunk.
    grad_h: Any
    grad_a: Any
    # For one task: (BLOCK,).
    grad_d: Any


@njit(forceinline=True)
def _allocate_scratch(states: int) -> Scratch:
    wide, group = CHUNK * BLOCK, CHUNK * GROUP * LANES
    return Scratch(
        allocate(wide), allocate(wide), allocate(wide), allocate(wide), allocate(wide),
        allocate(wide), allocate(group + GROUP * LANES), allocate(group), allocate(group),
        allocate(group), allocate(states * BLOCK), allocate(states * BLOCK), allocate(BLOCK),
    )  # fmt: skip


@njit(**OPTIONS)
def _load_gradient(inputs: ScanInputs, chunk: Chunk, grads: Gradients, scratch: Scratch) -> None:
    at = locate_in_tensor(chunk, grads.out_row, grads.out_step)
    z_at = locate_in_tensor(chunk, inputs.z_row, inputs.z_step)
    for t in range(chunk.steps):
        for j in range(0, chunk.channels, LANES):
            prefetch(grads.out, at + (t - CHUNK) * grads.out_step + j)
            prefetch(inputs.z, z_at + (t - CHUNK) * inputs.z_step + j)
            z = load(inputs.z, z_at + t * inputs.z_step + j)
            value = load(grads.out, at + t * grads.out_step + j) * z * sigmoid(z)
            i = locate_in_scratch(t, j)
            store(scratch.grad_y, i, value)
            store(scratch.grad_inflow, i, splat(_f(0)))
            store(scratch.grad_dt, i, splat(_f(0)))


@njit(**OPTIONS)
def _store_gate_gradient(inputs: ScanInputs, chunk: Chunk, grads: Gradients, y: Any) -> None:
    at = locate_in_tensor(chunk, grads.out_row, grads.out_step)
    z_at = locate_in_tensor(chunk, inputs.z_row, inputs.z_step)
    out_at = locate_in_tensor(chunk, inputs.length * inputs.width, inputs.width)
    for t in range(chunk.steps):
        for j in range(0, chunk.channels, LANES):
            z = load(inputs.z, z_at + t * inputs.z_step + j)
            # The derivative of silu(z) = z s is s + s z (1 - s).
            s = sigmoid(z)
            slope = s + s * z * (splat(_f(1)) - s)
            # y is the output before the gate.
            value = load(grads.out, at + t * grads.out_step + j) * load(y, locate_in_scratch(t, j))
            prefetch(grads.z, out_at + (t - CHUNK) * inputs.width + j)
            store(grads.z, out_at + t * inputs.width + j, value * slope)


@njit(**OPTIONS)
def _store_input_gradients(
    inputs: ScanInputs, chunk: Chunk, grads: Gradients, scratch: Scratch
) -> None:
    u_at = locate_in_tensor(chunk, inputs.u_row, inputs.u_step)
    delta_at = locate_in_tensor(chunk, inputs.delta_row, inputs.delta_step)
    out_at = locate_in_tensor(chunk, inputs.length * inputs.width, inputs.width)
    for j in range(0, chunk.channels, LANES):
        D, grad_D = load(inputs.D, chunk.origin + j), load(scratch.grad_d, j)
        for t in range(chunk.steps):
            i, k = locate_in_scratch(t, j), out_at + t * inputs.width + j
            u = load(inputs.u, u_at + t * inputs.u_step + j)
            grad_y, grad_inflow = load(scratch.grad_y, i), load(scratch.grad_inflow, i)
            # scratch.grad_dt is log2(e) times the gradient of dt through the decay. The second term
            # is the gradient of dt through inflow = dt u.
            grad_dt = load(scratch.grad_dt, i) * splat(LN_2) + grad_inflow * u
            # The derivative of softplus is the sigmoid.
            delta = load(inputs.delta, delta_at + t * inputs.delta_step + j)
            prefetch(grads.u, k - CHUNK * inputs.width)
            prefetch(grads.delta, k - CHUNK * inputs.width)
            store(grads.u, k, grad_inflow * load(scratch.dt, i) + grad_y * D)
            store(grads.delta, k, grad_dt * sigmoid(delta))
            grad_D = grad_y * u + grad_D
        store(scratch.grad_d, j, grad_D)


@njit(**OPTIONS)
def _backpropagate_chunk(
    inputs: ScanInputs, chunk: Chunk, grads: Gradients, scratch: Scratch, saved: Any
) -> None:
    load_chunk(inputs, chunk, -CHUNK, scratch.dt, scratch.inflow, scratch.y)
    _load_gradient(inputs, chunk, grads, scratch)
    block = chunk.origin // BLOCK
    for n in range(0, inputs.states, GROUP):
        # All channels share B and C, so their gradients are summed over the channels of the block.
        scratch.grad_b[:] = 0
        scratch.grad_c[:] = 0
        for j in range(0, chunk.channels, LANES):
            recompute(
                inputs, chunk, n, j, saved, scratch.dt, scratch.inflow, scratch.y,
                scratch.states, scratch.decays,
            )  # fmt: skip
            backpropagate(
                inputs, chunk, n, j, scratch.dt, scratch.inflow, scratch.states, scratch.decays,
                scratch.grad_y, scratch.grad_inflow, scratch.grad_dt, scratch.grad_h,
                scratch.grad_a, n * BLOCK + j, BLOCK, scratch.grad_b, scratch.grad_c,
            )  # fmt: skip
        row = block * inputs.batch + chunk.row
        at = (row * inputs.length + chunk.start) * inputs.states + n
        store_lane_sums(scratch.grad_b, grads.B, at, inputs.states, chunk.steps)
        store_lane_sums(scratch.grad_c, grads.C, at, inputs.states, chunk.steps)
    _store_gate_gradient(inputs, chunk, grads, scratch.y)
    _store_input_gradients(inputs, chunk, grads, scratch)


@njit(**OPTIONS)
def _store_row_gradients(
    inputs: ScanInputs, row: int, origin: int, channels: int, grads: Gradients, scratch: Scratch
) -> None:
    length, width, real = inputs.length, inputs.width, inputs.lengths[row]
    block, blocks = origin // BLOCK, (width + BLOCK - 1) // BLOCK
    zero_padding(grads.u, row, length, width, real, block, blocks)
    zero_padding(grads.delta, row, length, width, real, block, blocks)
    zero_padding(grads.z, row, length, width, real, block, blocks)
    zero_padding(grads.B, block * inputs.batch + row, length, inputs.states, real, 0, 1)
    zero_padding(grads.C, block * inputs.batch + row, length, inputs.states, real, 0, 1)
    for j in range(0, channels, LANES):
        for n in range(inputs.states):
            at = (row * inputs.states + n) * width + origin + j
            store(grads.A, at, load(scratch.grad_a, n * BLOCK + j))
        store(grads.D, row * width + origin + j, load(scratch.grad_d, j))


@njit(**OPTIONS)
def _scan_backward(table: Any, u: Any, z: Any, out: Any, grad_u: Any, grad_z: Any) -> None:
    mode = flush_denormals()
    inputs, saved = unpack_inputs(table, u, z), as_float32(table[20])
    scratch = _allocate_scratch(inputs.states)
    # `out` is the gradient of the output.
    grads = Gradients(
        out, table[22], table[23], grad_u, as_float32(table[25]), grad_z,
        as_float32(table[27]), as_float32(table[28]), as_float32(table[29]), as_float32(table[30]),
    )  # fmt: skip
    blocks = (inputs.width + BLOCK - 1) // BLOCK
    task = take_task(table)
    while task < inputs.batch * blocks:
        row, origin = inputs.order[task // blocks], task % blocks * BLOCK
        channels, real = min(BLOCK, inputs.width - origin), inputs.lengths[row]
        scratch.grad_h[:] = 0
        scratch.grad_a[:] = 0
        scratch.grad_d[:] = 0
        # The last chunk of the row comes first. A row of length 0 has no chunk.
        for start in range((real - 1) // CHUNK * CHUNK, -1, -CHUNK):
            chunk = Chunk(row, origin, channels, start, min(CHUNK, real - start))
            _backpropagate_chunk(inputs, chunk, grads, scratch, saved)
        _store_row_gradients(inputs, row, origin, channels, grads, scratch)
        task = take_task(table)
    restore_mode(mode)


def scan_backward_float32(table: Any) -> None:
    """Run the backward pass for float32 u and z."""
    _scan_backward(
        table, as_float32(table[7]), as_float32(table[13]), as_float32(table[21]),
        as_float32(table[24]), as_float32(table[26]),
    )  # fmt: skip


def scan_backward_bfloat16(table: Any) -> None:
    """Run the backward pass for bfloat16 u and z."""
    _scan_backward(
        table, as_bfloat16(table[7]), as_bfloat16(table[13]), as_bfloat16(table[21]),
        as_bfloat16(table[24]), as_bfloat16(table[26]),
    )  # fmt: skip
