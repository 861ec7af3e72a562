"""What ties rows together: the same film, the same author, nearly the same text."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components


def linked(*keys: Sequence[Hashable | None]) -> np.ndarray:
    """Return group numbers (N,) of rows that share a key, directly or through other rows.

    Args:
        keys: one sequence (N,) for each way of being tied; None ties a row to no other.
    """
    size = len(keys[0])
    rows, nodes, first = [], [], size
    for values in keys:
        codes, names = pd.factorize(np.array([*values, None], dtype=object)[:-1])
        known = codes >= 0
        rows.append(np.flatnonzero(known))
        nodes.append(codes[known] + first)
        first += len(names)
    row, node = np.concatenate(rows), np.concatenate(nodes)
    graph = coo_array((np.ones(len(row), dtype=bool), (row, node)), shape=(first, first))
    _, groups = connected_components(graph, directed=False)
    # Numbers in the order of the rows, without those of keys.
    return pd.factorize(groups[:size])[0]
