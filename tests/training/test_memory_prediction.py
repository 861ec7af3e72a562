"""What memory is left, what a step will take of it, and that asking changes nothing."""

from __future__ import annotations

import multiprocessing
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from memory_child import train
from short_fit import short_fit, weights
from torch import nn

from kinopoisk_ft.training import device, memory
from kinopoisk_ft.training.batching import Examples
from kinopoisk_ft.training.memory import measure_available_memory
from kinopoisk_ft.training.objective import Classification

MIB = 2**20


def write(folder: Path, **files: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(f"{text}\n")


def group_v2(folder: Path, limit: object, used: int, files: int = 0) -> None:
    write(folder, memory__max=limit, memory__current=used,
          memory__stat=f"anon 1\nfile 9\ninactive_file {files}")  # fmt: skip


@pytest.fixture(autouse=True)
def large_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with 100 GiB to spare and no limit on the process."""
    left = psutil.virtual_memory()._replace(available=100 * 2**30)
    monkeypatch.setattr(memory.psutil, "virtual_memory", lambda: left)
    infinite = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    monkeypatch.setattr(resource, "getrlimit", lambda _: infinite)


def test_cgroups_of_version_2(tmp_path: Path) -> None:
    """The tightest of the process's group and those above it; pages of files give way."""
    membership = tmp_path / "membership"
    membership.write_text("0::/slice/job\n")
    group_v2(tmp_path / "slice" / "job", "max", 10)
    assert measure_available_memory(tmp_path, membership) == 100 * 2**30
    group_v2(tmp_path / "slice", 1000, 700, files=50)
    assert measure_available_memory(tmp_path, membership) == 350
    group_v2(tmp_path / "slice" / "job", 900, 700, files=0)
    assert measure_available_memory(tmp_path, membership) == 200
    group_v2(tmp_path / "slice" / "job", 900, 950)
    assert measure_available_memory(tmp_path, membership) == 0


def test_cgroups_of_version_1_in_a_container(tmp_path: Path) -> None:
    """The path is the host's; inside, the group's files are at the root."""
    membership = tmp_path / "membership"
    membership.write_text("5:cpu,cpuacct:/docker/abc\n4:memory:/docker/abc\n0::/\n")
    group = {"memory__usage_in_bytes": 600, "memory__stat": "cache 5\ntotal_inactive_file 100"}
    write(tmp_path / "memory", memory__limit_in_bytes=9223372036854771712, **group)
    assert measure_available_memory(tmp_path, membership) == 100 * 2**30
    write(tmp_path / "memory", memory__limit_in_bytes=1000, **group)
    assert measure_available_memory(tmp_path, membership) == 500


def test_no_cgroups_and_a_limit_of_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert measure_available_memory(tmp_path, tmp_path / "none") == 100 * 2**30
    used = psutil.Process().memory_info().vms
    monkeypatch.setattr(resource, "getrlimit", lambda _: (used + 512 * MIB, -1))
    assert measure_available_memory(tmp_path, tmp_path / "none") == pytest.approx(
        512 * MIB, abs=64 * MIB
    )


GROWTH = """
import torch
from kinopoisk_ft.training.device import peak_growth, peak_memory_mb, reset_peak_memory
CPU, MIB = torch.device("cpu"), 2**20

def work():
    torch.ones(48, MIB // 4)
    torch.ones(32, MIB // 4)

reset_peak_memory(CPU)
before = peak_memory_mb(CPU)
torch.ones(200, MIB // 4)
# What the first call freed is not a present to the second.
print(peak_growth(work), peak_growth(work), peak_memory_mb(CPU) - before)
reset_peak_memory(CPU)
print(peak_memory_mb(CPU) - before)
"""


def test_growth_is_the_peak_and_earlier_peaks_are_kept() -> None:
    """In a process of its own: the heap of one that has run other tests is in pieces."""
    if not device.can_measure_growth():
        pytest.skip("this system does not tell a process's peak")
    done = subprocess.run(
        [sys.executable, "-c", GROWTH], capture_output=True, text=True, check=True
    )
    first, second, kept, forgotten = map(float, done.stdout.split())
    assert [first, second] == pytest.approx([48 * MIB] * 2, abs=4 * MIB)
    assert kept > 150
    assert forgotten < 100


@pytest.fixture
def tight(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], list[int]]:
    """Return how to leave so many MiB where a pass takes 10 MiB and 10 more for each row."""

    def leave(mib: float) -> list[int]:
        passed: list[int] = []
        loss_sum = Classification.loss_sum

        def watched(self: Classification, model: nn.Module, batch: Any) -> Any:
            passed.append(len(batch["labels"]))
            return loss_sum(self, model, batch)

        def growth(work: Callable[[], None]) -> int:
            passed.clear()
            work()
            assert len(passed) == 1
            return (10 + 10 * passed[0]) * MIB

        monkeypatch.setattr(memory, "AT_ONCE", 2**40)  # nothing passes for plenty
        monkeypatch.setattr(Classification, "loss_sum", watched)
        monkeypatch.setattr(memory, "peak_growth", growth)
        monkeypatch.setattr(memory, "can_measure_growth", lambda: True)
        monkeypatch.setattr(memory, "measure_available_memory", lambda: int(mib * MIB))
        return passed

    return leave


@pytest.mark.parametrize(
    # 1.2 times (10 + 10 rows) MiB, and the optimizer's, which is next to nothing.
    ("left", "rows"), [(160.0, 12), (150.0, 6), (85.0, 6), (80.0, 3), (40.0, 1)],
)  # fmt: skip
def test_the_micro_batch_is_halved_until_it_fits(
    left: float, rows: int, tight: Callable[[float], list[int]], tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    caplog.set_level("INFO")
    tight(left)
    state, recorder = short_fit(tmp_path, "trainer.max_steps=1")
    assert state.micro_batch_size == rows
    assert recorder.of("micro_batch_size") == [rows]
    said = "it fits" if rows == 12 else f"{rows} at once"
    assert f"are left: {said}" in caplog.text
    assert "with 12 rows of " in caplog.text


def test_a_lack_for_a_single_row_is_told(
    tight: Callable[[float], list[int]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tight(15.0)
    state, _ = short_fit(tmp_path, "trainer.max_steps=1")
    assert state.micro_batch_size == 1
    assert "may not suffice for a single row" in caplog.text


@pytest.mark.parametrize("kind", ["bert_scratch", "mamba_scratch"])
def test_the_probe_leaves_everything_as_it_was(
    kind: str, tight: Callable[[float], list[int]], tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    def add_norm(module: nn.Module) -> None:
        """Add a module whose buffers change with each pass."""
        norm = nn.BatchNorm1d(2)
        module.add_module("extra", norm)

        def pass_on(module: nn.Module, args: Any, output: Any) -> Any:
            return type(output)(logits=norm(output.logits)) if len(output.logits) > 1 else output

        module.register_forward_hook(pass_on)

    settings: dict[str, Any] = {"kind": kind, "dropout": 0.3, "prepare": add_norm}
    whole, expected = short_fit(tmp_path / "unprobed", **settings)
    tight(160.0)
    caplog.set_level("INFO")
    state, found = short_fit(tmp_path / "probed", **settings)
    assert "are left: it fits" in caplog.text
    assert found.values == expected.values
    assert torch.equal(weights(state), weights(whole))
    assert state.tokens == whole.tokens


def test_nothing_is_measured_where_memory_is_plenty(
    tight: Callable[[float], list[int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    def refuse(_: object) -> int:
        raise AssertionError("it was measured")

    caplog.set_level("INFO")
    passed = tight(1e6)
    monkeypatch.setattr(memory, "AT_ONCE", 3)
    monkeypatch.setattr(memory, "peak_growth", refuse)
    assert short_fit(tmp_path, "trainer.max_steps=1")[0].micro_batch_size == 12
    assert passed[0] == 1, "one row goes forward"
    assert "takes less than" in caplog.text


@pytest.mark.parametrize("kind", ["bert_scratch", "mamba_scratch"])
def test_what_a_pass_keeps_is_at_least_what_modules_give(kind: str, tmp_path: Path) -> None:
    """Each linear layer keeps its input: the sum over layers is a lower bound of its own."""
    state, _ = short_fit(tmp_path, "trainer.max_steps=1", kind=kind)
    inputs: dict[int, int] = {}
    train = Examples([[5] * 30], np.zeros(1, dtype=np.int64))

    def note(_: nn.Module, args: Any) -> None:
        inputs[args[0].data_ptr()] = args[0].nbytes

    hooks = [m.register_forward_pre_hook(note) for m in state.model.modules()
             if isinstance(m, nn.Linear)]  # fmt: skip
    kept = memory._count_saved_bytes(state, train)
    for hook in hooks:
        hook.remove()
    assert len(inputs) > 4
    assert sum(inputs.values()) < kept < 40 * sum(inputs.values())


@pytest.mark.slow
def test_a_process_with_little_memory_trains_in_smaller_parts(tmp_path: Path) -> None:
    """As the probe chooses beforehand; and without it, where the allocator's refusal tells."""
    spawned = multiprocessing.get_context("spawn")
    found: list[dict[str, Any]] = []
    for i, (limit, probes) in enumerate(((None, True), (550, True), (550, False))):
        answers: Any = spawned.Queue()
        child = spawned.Process(target=train, args=(limit, probes, tmp_path / str(i), answers))
        child.start()
        found.append(answers.get(timeout=300))
        child.join()
        assert child.exitcode == 0
    free, probed, refused = found
    assert (free["rows"], free["failures"]) == (32, 0)
    assert free["growth"] / 1.2 < free["predicted"] < free["growth"] * 1.2
    assert free["growth"] < 3 * free["kept"] < 6 * free["growth"], "what passes for plenty"
    assert (probed["rows"], probed["failures"]) == (16, 0)
    assert (refused["rows"], refused["failures"]) == (16, 1)
    for other in (probed, refused):
        assert other["loss"] == pytest.approx(free["loss"], abs=1e-5)
