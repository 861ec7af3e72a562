"""Check the measured free memory and the predicted memory of a step; both change nothing."""

from __future__ import annotations

import multiprocessing
import resource
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

from kinopoisk_ft.data.windows import Windows
from kinopoisk_ft.training import memory
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
    """Simulate a machine with 100 GiB of free memory and a process without a limit."""
    left = psutil.virtual_memory()._replace(available=100 * 2**30)
    monkeypatch.setattr(memory.psutil, "virtual_memory", lambda: left)
    infinite = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    monkeypatch.setattr(resource, "getrlimit", lambda _: infinite)


def test_cgroups_of_version_2(tmp_path: Path) -> None:
    """The lowest limit of the cgroup and its parents counts; file pages can be reclaimed."""
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
    """The path comes from the host; in the container the cgroup's files are at the root."""
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


@pytest.fixture
def tight(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], list[int]]:
    """Return a function that simulates free memory, in MiB; a row saves 5 MiB and so needs 10."""

    def leave(mib: float) -> list[int]:
        passed: list[int] = []
        loss_sum = Classification.loss_sum

        def watched(self: Classification, model: nn.Module, batch: Any) -> Any:
            passed.append(len(batch["labels"]))
            return loss_sum(self, model, batch)

        saved = memory._count_saved_bytes

        def count(*args: Any) -> int:
            return saved(*args) and 5 * MIB

        monkeypatch.setattr(Classification, "loss_sum", watched)
        monkeypatch.setattr(memory, "_count_saved_bytes", count)
        monkeypatch.setattr(memory, "measure_available_memory", lambda: int(mib * MIB))
        return passed

    return leave


@pytest.mark.parametrize(
    # 10 MiB per row, and less than 1 MiB for gradients and the optimizer.
    ("left", "rows"), [(121.0, 12), (119.0, 6), (61.0, 6), (59.0, 3), (12.0, 1)],
)  # fmt: skip
def test_the_micro_batch_is_halved_until_it_fits(
    left: float, rows: int, tight: Callable[[float], list[int]], tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    caplog.set_level("DEBUG")
    tight(left)
    state, recorder = short_fit(tmp_path, "trainer.max_steps=1")
    assert state.micro_batch_size == rows
    assert recorder.of("micro_batch_size") == [rows]
    said = "it fits" if rows == 12 else f"training uses {rows} rows at once"
    assert f"are free: {said}" in caplog.text
    assert "with 12 rows of " in caplog.text


def test_predicted_lack_for_one_row_is_reported(
    tight: Callable[[float], list[int]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tight(9.0)
    state, _ = short_fit(tmp_path, "trainer.max_steps=1")
    assert state.micro_batch_size == 1
    assert "may not suffice even for a single row" in caplog.text


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
    caplog.set_level("DEBUG")
    state, found = short_fit(tmp_path / "probed", **settings)
    assert "are free: it fits" in caplog.text
    assert found.values == expected.values
    assert torch.equal(weights(state), weights(whole))
    assert state.tokens == whole.tokens


def test_one_row_goes_forward(tight: Callable[[float], list[int]], tmp_path: Path) -> None:
    passed = tight(1e6)
    assert short_fit(tmp_path, "trainer.max_steps=1")[0].micro_batch_size == 12
    assert passed[:2] == [1, 12]


@pytest.mark.parametrize(("left", "rows"), [(31.0, 12), (29.0, 6), (11.0, 3), (9.0, 1)])
def test_a_micro_batch_has_windows_instead_of_reviews(
    left: float, rows: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A review has four windows of 2.5 MiB; a micro-batch of fewer windows has the same size."""
    state, _ = short_fit(tmp_path, "trainer.max_steps=1")
    train = Examples([[5] * 26], None, Windows(room=6, stride=6, max_windows=None, left=1, right=1))
    monkeypatch.setattr(memory, "_count_saved_bytes", lambda *_: 10 * MIB // memory.PEAK_FACTOR)
    monkeypatch.setattr(memory, "measure_available_memory", lambda: int(left * MIB))
    assert memory.fit_rows_to_memory(state, train) == rows


@pytest.mark.parametrize("kind", ["bert_scratch", "mamba_scratch"])
def test_saved_bytes_exceed_the_inputs_of_linear_layers(kind: str, tmp_path: Path) -> None:
    """Each linear layer saves its input, so the sum over the layers is a lower bound."""
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
    """This works with a prediction, and without one when the allocator raises."""
    spawned = multiprocessing.get_context("spawn")
    found: list[dict[str, Any]] = []
    cases = ((None, True), (600, True), (600, False), (None, True, "true"))
    for i, (limit, predicts, *recomputes) in enumerate(cases):
        answers: Any = spawned.Queue()
        args = (limit, predicts, tmp_path / str(i), answers, *recomputes)
        child = spawned.Process(target=train, args=args)
        child.start()
        found.append(answers.get(timeout=300))
        child.join()
        assert child.exitcode == 0
    free, predicted, refused, recomputed = found
    assert (free["rows"], free["failures"]) == (32, 0)
    assert free["growth"] < free["predicted"] < 2 * free["growth"]
    # The prediction takes into account that gradient checkpointing needs less memory.
    assert recomputed["growth"] < recomputed["predicted"] < 2.5 * recomputed["growth"]
    assert recomputed["predicted"] < free["predicted"] / 2
    assert (predicted["rows"], predicted["failures"]) == (16, 0)
    assert (refused["rows"], refused["failures"]) == (16, 1)
    for other in (predicted, refused, recomputed):
        assert other["loss"] == pytest.approx(free["loss"], abs=1e-5)
