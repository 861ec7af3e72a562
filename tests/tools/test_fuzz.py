"""Test that the fuzzer notices what it must notice, and that it finds nothing in the tables."""

from __future__ import annotations

import json
import os
import pickle
import runpy
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from forks import CHILDREN
from places import ROOT


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.getcwd, ()


def escape(folder: Path) -> None:
    (folder.parents[2] / "escaped").write_text("")


def import_module(folder: Path) -> None:
    (folder / "evil_module.py").write_text("")
    sys.path.insert(0, str(folder))
    __import__("evil_module")


# What an input could cause, and how the fuzzer describes it.
FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "exception": (lambda folder: {}["a"], "KeyError in test_fuzz.py"),
    "program": (lambda folder: os.system("true"), "Violation os.system"),
    "pickle": (lambda folder: pickle.loads(pickle.dumps(Evil())), "Violation pickle.find_class"),
    "connection": (lambda folder: socket.create_connection(("127.0.0.1", 9)), "Violation socket."),
    "reading": (lambda folder: (folder.parent / "secret.txt").read_text(), "is read"),
    "writing": (escape, "PermissionError in worker.py"),
    "code": (import_module, "Violation"),
}


def find(name: str, out: Path) -> None:
    """Run one input that causes a fault, twice."""
    sys.path.insert(0, str(ROOT / "tools" / "fuzz"))
    from worker import Runner

    runner = Runner("tables", out)
    runner.check = lambda data, folder: FAULTS[name][0](folder)
    for _ in range(2):
        runner.run(bytes(64))


@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_is_recorded_once(name: str, tmp_path: Path) -> None:
    process = CHILDREN.Process(target=find, args=(name, tmp_path))
    process.start()
    process.join()
    assert process.exitcode == 0
    (error,) = (tmp_path / "errors").glob("*/error.txt")
    assert FAULTS[name][1] in error.read_text().partition("\n")[0]
    assert (error.parent / "buffer.bin").read_bytes() == bytes(64)
    assert (tmp_path / "executions").read_text() == "2"


def test_only_new_errors_make_the_command_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "tools" / "fuzz"))
    import worker

    results = tmp_path / "results.json"
    old = {"target": "texts", "executions": 1, "coverage": 1.0, "errors": ["KeyError"],
           "minutes": 1, "commit": "a"}  # fmt: skip
    results.write_text(json.dumps([old]))
    monkeypatch.setattr(worker, "preload", lambda: None)
    monkeypatch.setattr("sys.argv", ["fuzz", "--minutes", "0", "--json", str(results)])
    assert runpy.run_path(str(ROOT / "tools/fuzz/__main__.py"))["main"]() == 0
    assert json.loads(results.read_text()) == [old]


@pytest.mark.slow
def test_tables_are_read_or_refused(tmp_path: Path) -> None:
    results = tmp_path / "results.json"
    command = [sys.executable, "tools/fuzz", "tables", "--minutes", "0.5", "--out", str(tmp_path),
               "--json", str(results)]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (found,) = json.loads(results.read_text())
    assert found["executions"] > 20
    assert found["coverage"] > 50
