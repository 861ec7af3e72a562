"""Add up what the tasks of the selective scan's backward kernel leave apart.

B and C are shared by all channels, whose blocks are tasks of their own; A, D and bias by all rows.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from numba import njit

from kinopoisk_ft.ops.kernel_cache import OPTIONS
from kinopoisk_ft.ops.lane_memory import scratch
from kinopoisk_ft.ops.lanes import LANES, load, store
from kinopoisk_ft.ops.scan_problem import Problem

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
