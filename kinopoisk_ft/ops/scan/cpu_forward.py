"""Compute the forward pass of the selective scan on a CPU.

A task is one row of the batch and one block of channels. The state before each chunk of steps is
saved for the backward pass.
"""

from __future__ import annotations

from typing import Any

from numba import njit

from kinopoisk_ft.ops.scan.cpu_inputs import (
    CHUNK,
    Chunk,
    ScanInputs,
    load_chunk,
    locate_in_saved,
    locate_in_scratch,
    locate_in_tensor,
    unpack_inputs,
)
from kinopoisk_ft.ops.scan.cpu_states import GROUP, advance, load_group, store_group
from kinopoisk_ft.ops.simd.denormals import flush_denormals, restore_mode
from kinopoisk_ft.ops.simd.kernel_cache import OPTIONS
from kinopoisk_ft.ops.simd.load_store import allocate, load, prefetch, store, zero_padding
from kinopoisk_ft.ops.simd.math import sigmoid
from kinopoisk_ft.ops.simd.register import LANES
from kinopoisk_ft.ops.simd.threads import as_bfloat16, as_float32, take_task

# Channels per task. The scratch of a chunk then fits in the L1 cache.
BLOCK = 32


@njit(**OPTIONS)
def _store_output(inputs: ScanInputs, chunk: Chunk, y: Any, out: Any) -> None:
    z_at = locate_in_tensor(chunk, inputs.z_row, inputs.z_step)
    out_at = locate_in_tensor(chunk, inputs.length * inputs.width, inputs.width)
    for t in range(chunk.steps):
        for j in range(0, chunk.channels, LANES):
            prefetch(inputs.z, z_at + (t + CHUNK) * inputs.z_step + j)
            z = load(inputs.z, z_at + t * inputs.z_step + j)
            prefetch(out, out_at + (t + CHUNK) * inputs.width + j)
            value = load(y, locate_in_scratch(t, j)) * z * sigmoid(z)
            store(out, out_at + t * inputs.width + j, value)


@njit(**OPTIONS)
def _scan_chunk(
    inputs: ScanInputs, chunk: Chunk, h: Any, dt: Any, inflow: Any, y: Any, save: bool, saved: Any,
    out: Any,
) -> None:  # fmt: skip
    load_chunk(inputs, chunk, CHUNK, dt, inflow, y)
    for j in range(0, chunk.channels, LANES):
        for n in range(0, inputs.states, GROUP):
            # h has the shape (channels / LANES, states, LANES).
            at = j * inputs.states + n * LANES
            if save:
                saved_at = locate_in_saved(inputs, chunk, n, j)
                store_group(saved, saved_at, inputs.width, load_group(h, at, LANES))
            advance(inputs, chunk, n, j, h, at, dt, inflow, y)
    _store_output(inputs, chunk, y, out)


@njit(**OPTIONS)
def _scan_forward(table: Any, u: Any, z: Any, out: Any) -> None:
    mode = flush_denormals()
    inputs = unpack_inputs(table, u, z)
    # Fields of this kernel: [20] saved states (batch, chunks, states, width), [21] `out` (batch,
    # length, width), which the caller has converted to a pointer, [22] whether to save states.
    saved, save = as_float32(table[20]), table[22] != 0
    blocks = (inputs.width + BLOCK - 1) // BLOCK
    dt, inflow, y = allocate(CHUNK * BLOCK), allocate(CHUNK * BLOCK), allocate(CHUNK * BLOCK)
    h = allocate(inputs.states * BLOCK)
    task = take_task(table)
    while task < inputs.batch * blocks:
        row, origin = inputs.order[task // blocks], task % blocks * BLOCK
        channels, real = min(BLOCK, inputs.width - origin), inputs.lengths[row]
        # The state before the first step is zero.
        h[:] = 0
        for start in range(0, real, CHUNK):
            chunk = Chunk(row, origin, channels, start, min(CHUNK, real - start))
            _scan_chunk(inputs, chunk, h, dt, inflow, y, save, saved, out)
        zero_padding(out, row, inputs.length, inputs.width, real, task % blocks, blocks)
        task = take_task(table)
    restore_mode(mode)


def scan_forward_float32(table: Any) -> None:
    """Run the forward pass for float32 u and z."""
    _scan_forward(table, as_float32(table[7]), as_float32(table[13]), as_float32(table[21]))


def scan_forward_bfloat16(table: Any) -> None:
    """Run the forward pass for bfloat16 u and z."""
    _scan_forward(table, as_bfloat16(table[7]), as_bfloat16(table[13]), as_bfloat16(table[21]))
