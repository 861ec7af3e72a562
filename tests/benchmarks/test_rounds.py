"""Test that benchmarks start their sides alternately and with equal conditions."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
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


def test_single_commands_and_sweeps_train_the_same_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = import_module("sweep")
    counts: list[int] = []

    def train(_: str, commands: list[list[str]]) -> float:
        counts.append(len(commands))
        return 1.0

    monkeypatch.setattr(sweep, "train", train)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: True)
    assert [row["runs"] for row in sweep.compare(arguments()).rows] == [15, 15, 15]
    # The first command is a warm-up.
    assert counts == [1, 15, 1, 1]


def test_one_window_and_all_windows_alternate(monkeypatch: pytest.MonkeyPatch) -> None:
    windows = import_module("windows")
    reads: list[str] = []

    def run(work: Any, *_: Any) -> dict[str, float]:
        reads.append(work.project[-1].partition("=")[2])
        return {"tokens_per_second": 1.0, "mib": 1.0}

    monkeypatch.setattr(windows, "run_project", run)
    windows.compare(arguments())
    assert reads == ["head", "windows", "windows", "head", "head", "windows"]


@pytest.mark.slow
def test_the_benchmark_of_windows_runs(tmp_path: Path) -> None:
    windows, flags = import_module("windows"), import_module("common.equal_flags")
    data, model = flags.write_inputs(tmp_path, flags.SIZES["cpu"])
    args = argparse.Namespace(model=model, data=data, quick=True)
    one, every = windows.compare(args).rows
    assert one["time per token, ratio"] == 1
    assert every["tokens per second"] > 0


def test_commands_of_a_round_share_a_new_cache_and_a_new_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = import_module("sweep")
    used: list[tuple[str, ...]] = []

    def run(command: list[str], environment: dict[str, str]) -> None:
        store = next(x for x in command if x.startswith("tracking.uri"))
        used.append((environment["KINOPOISK_FT_CACHE"], store))

    monkeypatch.setattr(sweep, "run_process", run)
    for _ in range(2):
        sweep.train(str(tmp_path), [["seed=0"], ["seed=1"]])
    assert used[0] == used[1]
    assert used[2] == used[3]
    assert not set(used[0]) & set(used[2])


def test_jobs_of_a_round_begin_their_steps_together(
    busy: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    child = tmp_path / "child.py"
    child.write_text(
        "import os, pathlib\n"
        "folder = pathlib.Path(__file__).with_name('ready')\n"
        "(folder / str(os.getpid())).touch()\n"
        "input('ready\\n')\n"
        "assert 'OMP_WAIT_POLICY' not in os.environ\n"
        "print(len(list(folder.iterdir())) * int(os.environ['OMP_NUM_THREADS']))\n"
    )
    (tmp_path / "ready").mkdir()
    monkeypatch.setattr(busy, "__file__", str(child))
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    assert busy.step_seconds("e5", 3, jobs=2, threads=5) == 10


def test_the_busy_process_ends_with_the_benchmark(busy: ModuleType) -> None:
    start = (
        "import os, subprocess, sys\n"
        "other = [sys.executable, '-c', sys.argv[1], str(os.getpid())]\n"
        "print(subprocess.Popen(other, stdout=subprocess.DEVNULL).pid, flush=True)\n"
        "os._exit(1)\n"
    )
    command = [sys.executable, "-c", start, busy.OTHER]
    pid = int(subprocess.run(command, capture_output=True, text=True).stdout)
    for _ in range(200):
        if not runs(pid):
            return
        time.sleep(0.1)
    pytest.fail("the busy process still runs")


def runs(pid: int) -> bool:
    # In some containers, nobody collects the exit status of orphans.
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def test_the_peak_memory_of_a_side_does_not_include_the_benchmark() -> None:
    sides = import_module("common.sides")
    size = 2**29
    # Writing makes the memory resident.
    block = bytearray(os.urandom(2**12)) * (size // 2**12)
    del block
    _, mib = sides.run_process([sys.executable, "-S", "-c", "pass"])
    assert mib < (psutil.Process().memory_info().rss + size / 2) / 2**20
