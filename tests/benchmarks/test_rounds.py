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


def test_each_precision_of_the_comparison_alternates(monkeypatch: pytest.MonkeyPatch) -> None:
    peer = import_module("peer")
    calls: list[str] = []

    def run(side: str, *inputs: Any) -> dict[str, float]:
        calls.append(f"{side} {inputs[-1]}")
        return dict.fromkeys(("seconds", "eval_seconds", "mib", "tokens_per_second"), 1.0)

    for side in ("peer", "project"):
        monkeypatch.setattr(peer, f"run_{side}", lambda *inputs, side=side: run(side, *inputs))
    monkeypatch.setattr(peer, "matrix_rate", lambda dtype: 1.0)
    monkeypatch.setattr(peer, "flop_per_token", lambda *_: 1)
    monkeypatch.setattr(peer.BertConfig, "from_pretrained", lambda _: None)
    kinds = ["fp32", "bf16"]
    rows = list(peer.compare("e5-full", peer.QUICK, arguments(precisions=kinds, rounds=2)))
    assert [row["precision"] for row in rows] == kinds
    for kind in kinds:
        sides = [call.split()[0] for call in calls if call.endswith(kind)]
        assert sides == ["peer", "project", "project", "peer"]


def test_the_peak_memory_of_a_side_does_not_include_the_benchmark() -> None:
    sides = import_module("common.sides")
    size = 2**29
    # Writing makes the memory resident.
    block = bytearray(os.urandom(2**12)) * (size // 2**12)
    del block
    _, mib = sides.run_process([sys.executable, "-S", "-c", "pass"])
    assert mib < (psutil.Process().memory_info().rss + size / 2) / 2**20
