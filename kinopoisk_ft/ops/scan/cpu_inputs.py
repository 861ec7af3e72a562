"""Unpack and load the inputs of the selective scan's CPU kernels.

A kernel gets one table of int64. Entry 0 counts the started tasks, and entries 1 to 19 are the
fields of `ScanInputs`. From entry 20 on, the forward and the backward kernel have different fields.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from numba import njit

from kinopoisk_ft.ops.simd.kernel_cache import OPTIONS
from kinopoisk_ft.ops.simd.load_store import load, prefetch, store
from kinopoisk_ft.ops.simd.math import softplus
from kinopoisk_ft.ops.simd.register import LANES
from kinopoisk_ft.ops.simd.threads import as_float32, as_int64

# Time steps per chunk, that is, between saved states. The scratch of a chunk fits in fast caches.
CHUNK = 32


class ScanInputs(NamedTuple):
    """Sizes of a scan, and pointers to its inputs."""

    batch: int
    length: int
    # Number of channels, padded to whole vectors.
    width: int
    # Number of states per channel, padded to whole groups.
    states: int
    # int64 (batch,): the row numbers, with the longest row first, and the length of each row.
    order: Any
    lengths: Any
    # (batch, length, width), with strides over batch and time in elements. u and z are float32 or
    # bfloat16; delta is float32.
    u: Any
    u_row: int
    u_step: int
    delta: Any
    delta_row: int
    delta_step: int
    z: Any
    z_row: int
    z_step: int
    # Contiguous and float32: (states, width).
    A: Any
    # (batch, length, states).
    B: Any
    C: Any
    # (width,).
    D: Any


class Chunk(NamedTuple):
    """A range of time steps and a block of channels in one row."""

    row: int
    # First channel and number of channels.
    origin: int
    channels: int
    # First step and number of steps.
    start: int
    steps: int


@njit(forceinline=True)
def unpack_inputs(table: Any, u: Any, z: Any) -> ScanInputs:
    """Convert a kernel's table to `ScanInputs`.

    u, z: pointers to float32 or bfloat16. The table contains only the addresses of u and z, which
        do not tell the dtype.
    """
    return ScanInputs(
        table[1], table[2], table[3], table[4], as_int64(table[5]), as_int64(table[6]),
        u, table[8], table[9], as_float32(table[10]), table[11], table[12],
        z, table[14], table[15], as_float32(table[16]), as_float32(table[17]),
        as_float32(table[18]), as_float32(table[19]),
    )  # fmt: skip


@njit(forceinline=True)
def locate_in_tensor(chunk: Chunk, row_stride: int, step_stride: int) -> int:
    """Return the index of the chunk's first element in a tensor (batch, length, width)."""
    return chunk.row * row_stride + chunk.start * step_stride + chunk.origin


@njit(forceinline=True)
def locate_in_saved(inputs: ScanInputs, chunk: Chunk, n: int, j: int) -> int:
    """Return the index of one element of a chunk's initial state in the array of saved states.

    This array has the shape (batch, chunks, states, width).

    Args:
        n: index along the dimension `states`.
        j: channel, counted from the first channel of the chunk (`Chunk.origin`).
    """
    chunks = (inputs.length + CHUNK - 1) // CHUNK
    # Index of state 0 in the first three dimensions.
    first_state = (chunk.row * chunks + chunk.start // CHUNK) * inputs.states
    return (first_state + n) * inputs.width + chunk.origin + j


@njit(forceinline=True)
def locate_in_scratch(t: int, j: int) -> int:
    """Return the index of a vector of channels in the scratch memory of a chunk.

    Args:
        t: time step, counted from the first step of the chunk.
        j: first channel of the vector, counted from the first channel that the task computes.
    """
    # The steps of one vector of channels are contiguous. If all channels of a step were contiguous,
    # the steps of a vector would compete for the same few sets of the cache.
    return j * CHUNK + t * LANES


@njit(**OPTIONS)
def load_chunk(inputs: ScanInputs, chunk: Chunk, ahead: int, dt: Any, inflow: Any, y: Any) -> None:
    """Compute dt = softplus(delta), inflow = dt u and y = D u for a chunk.

    ahead: distance in steps to the chunk to prefetch. It is negative in the backward pass.
    """
    u_at = locate_in_tensor(chunk, inputs.u_row, inputs.u_step)
    delta_at = locate_in_tensor(chunk, inputs.delta_row, inputs.delta_step)
    for t in range(chunk.steps):
        for j in range(0, chunk.channels, LANES):
            prefetch(inputs.u, u_at + (t + ahead) * inputs.u_step + j)
            prefetch(inputs.delta, delta_at + (t + ahead) * inputs.delta_step + j)
            u = load(inputs.u, u_at + t * inputs.u_step + j)
            step = softplus(load(inputs.delta, delta_at + t * inputs.delta_step + j))
            i = locate_in_scratch(t, j)
            store(dt, i, step)
            store(inflow, i, step * u)
            store(y, i, u * load(inputs.D, chunk.origin + j))
