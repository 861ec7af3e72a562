"""Define in numpy the random numbers of dropout on a CPU."""

from __future__ import annotations

import numpy as np


def draws(key: int, row: int, columns: int) -> np.ndarray:
    """Compute a row's numbers, uint32: SplitMix64 of key and row, then `triple32` of the column."""
    with np.errstate(over="ignore"):
        z = np.uint64(key) + np.uint64(row + 1) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
        x = np.arange(columns, dtype=np.uint32) + z.astype(np.uint32)
        x = (x ^ (x >> np.uint32(17))) * np.uint32(0xED5AD4BB)
        x = (x ^ (x >> np.uint32(11))) + (z >> np.uint64(32)).astype(np.uint32)
        x = x * np.uint32(0xAC4C1B51)
        x = (x ^ (x >> np.uint32(15))) * np.uint32(0x31848BAB)
    return x ^ (x >> np.uint32(14))
