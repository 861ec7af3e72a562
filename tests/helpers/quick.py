"""Choose the cases that `make test` runs; `make test-all` runs all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest


def quick(cases: Sequence[Any], count: int) -> list[Any]:
    """Mark all cases after the first `count` as slow; a tuple is a case with several arguments."""
    slow = [
        pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.slow)
        for case in cases[count:]
    ]
    return [*cases[:count], *slow]
