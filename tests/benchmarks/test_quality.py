"""Test the quality benchmark: which finished runs it reuses, and what it says about them."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from places import ROOT


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import quality

    return quality


@pytest.mark.parametrize("change", ["model", "data", "commit", "works"])
def test_a_finished_run_is_reused_only_with_the_same_inputs(
    change: str, script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = {name: tmp_path / name for name in ("model", "data")}
    for file in paths.values():
        file.write_text("before")
    args = argparse.Namespace(**paths, runs=tmp_path / "runs", quick=False)
    calls: list[str] = []

    def run(side: str, *_: object) -> dict[str, float]:
        calls.append(side)
        return {"f1": len(calls) / 10, "accuracy": 0.5}

    monkeypatch.setattr(script, "_run", run)
    first = script.compare("full", (0,), args)
    assert script.compare("full", (0,), args) == first
    assert calls == [script.PEER, script.PROJECT]

    changes: dict[str, Callable[[], object]] = {
        "commit": lambda: monkeypatch.setattr(script, "get_commit", lambda: "another"),
        "works": lambda: monkeypatch.setitem(script.WORKS, "full", script.WORKS["lora"]),
    }
    changes.get(change, lambda: paths[change].write_text("after!"))()
    assert script.compare("full", (0,), args) != first
    assert calls == 2 * [script.PEER, script.PROJECT]


def test_the_note_of_a_quick_call_has_its_settings(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes: list[str] = []
    monkeypatch.setattr(script, "absent", lambda args: False)
    monkeypatch.setattr(script, "compare", lambda *_: [])
    monkeypatch.setattr(script, "publish", lambda _, sections, *__: notes.append(sections[0].note))
    for options, settings in ((["--quick"], ("100 reviews", "32 tokens", "epochs: 1")),
                              ([], ("2,000 reviews", "64 tokens", "epochs: 3"))):  # fmt: skip
        monkeypatch.setattr("sys.argv", ["quality.py", *options])
        script.main()
        assert all(part in notes[-1] for part in settings)
