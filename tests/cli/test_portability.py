"""Test that the package needs nothing that only POSIX has, so that it runs on Windows."""

from __future__ import annotations

import ast
import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from places import HELPERS, ROOT
from windows_child import MODULES, NAMES

from kinopoisk_ft.tasks.record import _get_peak_memory
from kinopoisk_ft.training import device, memory

FILES = [*(ROOT / "kinopoisk_ft").rglob("*.py"), *(ROOT / "hydra_plugins").rglob("*.py")]
LACKING = {f"os.{name}" for name in NAMES[os]} | {f"signal.{name}" for name in NAMES[signal]}


def used(tree: ast.Module) -> Iterator[str]:
    """Yield modules imported at the top of a file, and names of modules used without a check."""
    asked = {
        node.args[1].value
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and getattr(node.func, "id", "") == "hasattr"
        and isinstance(node.args[1], ast.Constant)
    }
    for node in tree.body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield str(node.module)
    for found in ast.walk(tree):
        if isinstance(found, ast.Attribute) and isinstance(found.value, ast.Name):
            name = f"{found.value.id}.{found.attr}"
            known = name in LACKING
            # A check for one name, such as pthread_sigmask, covers the constants that belong to it.
            if known and found.attr not in asked:
                yield name


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_no_module_needs_what_windows_lacks(file: Path) -> None:
    names = set(used(ast.parse(file.read_text(encoding="utf-8"))))
    assert not names & {*MODULES, *LACKING}


@pytest.fixture
def no_resource(monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulate a system with neither the module `resource` nor /proc."""
    monkeypatch.setitem(sys.modules, "resource", None)
    monkeypatch.setattr(device, "_STATUS", Path("/proc/nowhere"))


@pytest.mark.usefixtures("no_resource")
def test_the_peak_on_windows_is_that_of_the_working_set(monkeypatch: pytest.MonkeyPatch) -> None:
    info = SimpleNamespace(memory_info=lambda: SimpleNamespace(peak_wset=3 * 2**20))
    monkeypatch.setattr(device.psutil, "Process", lambda: info)
    assert device.peak_memory_mb(torch.device("cpu")) == 3


@pytest.mark.usefixtures("no_resource")
def test_a_peak_that_no_system_records_is_unknown(caplog: pytest.LogCaptureFixture) -> None:
    peak = device.peak_memory_mb(torch.device("cpu"))
    assert math.isnan(peak)
    fitted: Any = SimpleNamespace(peak_memory_mb=peak)
    assert _get_peak_memory(fitted) == {}
    assert "unknown" in caplog.text


@pytest.mark.usefixtures("no_resource")
def test_memory_that_is_left_needs_no_limit_of_the_process() -> None:
    assert memory.measure_available_memory() > 0


def child(folder: Path, *args: str) -> str:
    done = subprocess.run(
        [sys.executable, str(HELPERS / "windows_child.py"), *args],
        cwd=folder, capture_output=True, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "USER": "me", "USERNAME": "me",
             "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_every_module_is_imported_as_on_windows(tmp_path: Path) -> None:
    assert int(child(tmp_path)) > 200


NETWORK = ["model=bert_scratch", "model.hidden_size=16", "model.num_layers=1",
           "model.max_positions=64", "model.vocab_size=300", "trainer.max_steps=3"]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("model", [["model=tfidf"], NETWORK], ids=lambda args: args[0])
def test_a_run_works_as_on_windows(model: list[str], tmp_path: Path) -> None:
    child(tmp_path, *model, "data=demo", "data.reviews=120", "data.max_length=32",
          "trainer.device=cpu", "trainer.precision=fp32", "output_dir=run")  # fmt: skip
    assert json.loads((tmp_path / "run" / "result.json").read_text())["accuracy"] is not None
