"""Check the number of threads, and that a run's peak memory excludes earlier work."""

from __future__ import annotations

import io
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from composing import compose_config
from hydra.utils import instantiate
from joblib.externals.loky.backend import context

from kinopoisk_ft.training import device, loop
from kinopoisk_ft.training.device import limit_threads, peak_memory_mb, reset_peak_memory

CPU = torch.device("cpu")
# Each part is a fork of one process, because the import of torch takes a second.
CODE = """
import os
import torch
from kinopoisk_ft.training.device import keep_freed_memory, peak_memory_mb, reset_peak_memory
cpu = torch.device("cpu")
keep_freed_memory()
if not os.fork():
    earlier = [torch.ones(2**18) for _ in range(200)]
    last = torch.ones(2**10)  # lies above them: they cannot be cut off the heap's end
    del earlier
    before = peak_memory_mb(cpu)
    reset_peak_memory(cpu)
    print(before - peak_memory_mb(cpu), flush=True)
    os._exit(0)
os.wait()
keep_freed_memory(False)
reset_peak_memory(cpu)
before = peak_memory_mb(cpu)
for size in range(2, 12):
    # A small tensor above a large one: freed memory below it is only returned if it is mapped.
    large, small = torch.ones(size * 2**18), torch.ones(2**10)
    kept = [small] if size == 2 else [*kept, small]
    del large
print(peak_memory_mb(cpu) - before)
"""


@pytest.fixture(scope="module")
def measured() -> list[float]:
    """What a reset takes off the peak, and the growth without kept memory, in MiB."""
    if platform.libc_ver()[0] != "glibc":
        pytest.skip("only glibc has settings to keep")
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    return [float(line) for line in done.stdout.splitlines()]


@pytest.mark.slow
def test_memory_kept_by_earlier_work_is_not_counted(measured: list[float]) -> None:
    # The work uses 200 MiB.
    assert measured[0] > 150


@pytest.mark.parametrize(("asked", "possible"), [(True, True), (True, False), (False, True)])
def test_handling_of_freed_memory_is_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, asked: bool, possible: bool
) -> None:
    tried: list[bool] = []
    monkeypatch.setattr(
        loop, "keep_freed_memory", lambda keep: tried.append(keep) or (keep and possible)
    )
    settings = ["trainer.precision=fp32", "trainer.device=cpu", f"trainer.keep_memory={asked}"]
    with caplog.at_level("DEBUG"), torch.random.fork_rng():
        instantiate(compose_config(["model=bert_scratch", *settings]).trainer).open()
    kept = asked and possible
    expected = "is kept" if kept else "returns to the system"
    assert f"freed memory {expected}" in caplog.text
    assert tried == [asked]


@pytest.mark.slow
def test_returned_memory_is_not_fragmented(measured: list[float]) -> None:
    """At most one large tensor exists at a time, the largest of 11 MiB."""
    assert 10 < measured[1] < 16


def test_gradient_checkpointing_returns_freed_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tried: list[bool] = []
    monkeypatch.setattr(loop, "keep_freed_memory", lambda keep: tried.append(keep) or keep)
    for recomputes in ("false", "true"):
        settings = ["trainer.device=cpu", f"trainer.gradient_checkpointing={recomputes}"]
        with torch.random.fork_rng():
            instantiate(compose_config(["model=bert_scratch", *settings]).trainer).open()
    assert tried == [True, False]


@pytest.mark.parametrize("lacks", ["a file to clear", "a peak"])
def test_peak_memory_without_reset_is_reported(
    lacks: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """In containers the file may be read-only, or the status may lack the line."""
    status = tmp_path / "status"
    status.write_text("Name:\tpython\n" + ("" if lacks == "a peak" else "VmHWM:\t  2048 kB\n"))
    monkeypatch.setattr(device, "_STATUS", status)
    clear = tmp_path / "clear_refs"
    # Not even root can write this file.
    clear.mkdir()
    monkeypatch.setattr(device, "_CLEAR", tmp_path / "own" if lacks == "a peak" else clear)
    reset_peak_memory(CPU)
    assert "the reported peak memory includes earlier runs in this process" in caplog.text
    peak = peak_memory_mb(CPU)
    assert peak > 50 if lacks == "a peak" else peak == 2


@pytest.mark.parametrize(("quota", "chosen", "threads"), [(1, None, 1), (99, None, 2), (1, "2", 2)])
def test_threads_are_limited_by_the_quota_but_not_if_the_user_chose_a_number(
    quota: int, chosen: str | None, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if chosen:
        monkeypatch.setenv("OMP_NUM_THREADS", chosen)
    monkeypatch.setattr(device, "cpu_count", lambda: quota)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert limit_threads() == (threads < 2)
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


V2, QUOTA, PERIOD = "cpu.max", "cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"


@pytest.mark.skipif(device.cpu_count() < 2, reason="needs two cores")
@pytest.mark.parametrize(
    ("files", "is_limited"),
    [
        ({V2: "100000 100000\n"}, True),
        ({V2: "max 100000\n"}, False),
        ({QUOTA: "50000\n", PERIOD: "100000\n"}, True),
        ({QUOTA: "-1\n", PERIOD: "100000\n"}, False),
        ({}, False),
    ],
)
def test_the_quota_is_read_from_both_versions_of_cgroups(
    files: dict[str, str], is_limited: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def move(name: str) -> str:
        return str(name).replace("/sys/fs/cgroup", str(tmp_path))

    def read(name: str) -> io.StringIO:
        return io.StringIO(Path(move(name)).read_text())

    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    exists, before, cores = os.path.exists, torch.get_num_threads(), device.cpu_count()
    # joblib, which reads these files, has no option for their folder.
    monkeypatch.setattr(context, "open", read, raising=False)
    monkeypatch.setattr(os.path, "exists", lambda name: exists(move(name)))
    try:
        torch.set_num_threads(cores)
        assert limit_threads() == is_limited
        assert torch.get_num_threads() == (1 if is_limited else cores)
    finally:
        torch.set_num_threads(before)
