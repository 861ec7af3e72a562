"""Test that benchmarks start their sides alternately and with equal conditions."""

from __future__ import annotations

import argparse
import os
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil
import pytest
from places import ROOT


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))


@pytest.fixture
def busy() -> ModuleType:
    return import_module("busy")


def arguments(**options: Any) -> argparse.Namespace:
    return argparse.Namespace(model=Path("model"), data=Path("data"), quick=False, **options)


def test_the_peak_memory_of_a_side_does_not_include_the_benchmark() -> None:
    sides = import_module("common.sides")
    size = 2**29
    # Writing makes the memory resident.
    block = bytearray(os.urandom(2**12)) * (size // 2**12)
    del block
    _, mib = sides.run_process([sys.executable, "-S", "-c", "pass"])
    assert mib < (psutil.Process().memory_info().rss + size / 2) / 2**20
