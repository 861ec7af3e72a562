"""What ties rows together: the same film, the same author, nearly the same text."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Hashable, Sequence

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

# "(2009)", "[сериал, 2009–2011]": a bare number may be the film's own, as of "1408".
_YEAR = re.compile(r"[(\[][^()\[\]]*\b(?:18|19|20)\d\d\b[^()\[\]]*[)\]]\s*$")
_MARKS = re.compile(r"[\"'`«»“”„‘’]+")


def fold_name(name: object) -> str | None:
    """Return a name of a film or author as it is compared; None where there is none.

    Case, ё and е, white space, quotes and a year in brackets at the end count for nothing, so that
    remakes of one name are one film: that can only make a split stricter.
    """
    if not isinstance(name, str):
        return None
    folded = unicodedata.normalize("NFKC", name).casefold().replace("ё", "е")
    folded = " ".join(_MARKS.sub("", _YEAR.sub("", folded)).split())
    return folded or None


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
