"""Test that benchmarks time jobs alternately, after a call that may compile kernels."""

from __future__ import annotations

from functools import partial
from types import ModuleType

import pytest
from places import ROOT


@pytest.fixture
def timing(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from common import timing

    return timing


def test_the_first_call_of_each_job_is_not_timed(timing: ModuleType) -> None:
    calls: list[str] = []
    # With turns of no length, each turn is one call.
    ways = {name: partial(calls.append, name) for name in "ab"}
    seconds = timing.alternate(ways, rounds=2, turn=0.0)
    assert calls == ["a", "b", "a", "b", "b", "a"]
    assert [len(seconds[name]) for name in ways] == [2, 2]
