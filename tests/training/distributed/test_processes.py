"""Check that several processes train a model like a single process."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from distributed_child import member
from gpu import ON_GPU
from networks import model_overrides
from safetensors.torch import load_file
from training_processes import FSDP, NO_DROPOUT, started

from kinopoisk_ft.training.distributed import processes as distributed
from kinopoisk_ft.training.distributed.processes import shard_batch

RECOMPUTED = "trainer.gradient_checkpointing=true"


def together(
    count: int, folder: Path, kind: str, adapter: str = "none", more: Sequence[str] = (),
    last: int | None = None,
) -> list[int | None]:  # fmt: skip
    """Train a tiny network in `count` processes, up to a step if it is given."""
    # Write the checkpoint here once, for all child processes.
    if not kind.endswith("scratch"):
        model_overrides(kind)
    return started(member, count, folder, kind, adapter, more, last)


def result(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return found


def compare(one: Path, other: Path) -> None:
    """Compare the values of every step, the predictions and the final weights."""
    compare_values(one, other, 1e-5)
    mine, theirs = (load_file(folder / "tensors.safetensors") for folder in (other, one))
    torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=0)
    if "outputs" in theirs:
        torch.testing.assert_close(mine["outputs"], theirs["outputs"], atol=1e-5, rtol=0)


def compare_values(one: Path, other: Path, tolerance: float) -> None:
    """Compare the values of every step and the scores."""
    expected, found = result(one), result(other)
    assert found["values"].keys() == expected["values"].keys()
    assert found["values"] == pytest.approx(expected["values"], abs=tolerance)
    assert found["scores"] == pytest.approx(expected["scores"], abs=tolerance)
    assert (found["tokens"], found["steps"]) == (expected["tokens"], expected["steps"])
    assert found["best"] == pytest.approx(expected["best"], abs=tolerance)


def test_two_processes_train_as_one(tmp_path: Path) -> None:
    for count in (0, 2):
        folder = tmp_path / str(count)
        assert set(together(count, folder, "bert_scratch", more=NO_DROPOUT)) == {0}
    compare(tmp_path / "0", tmp_path / "2")
    # The other rank has the same results, and wrote no checkpoint.
    assert result(tmp_path / "2" / "rank1") == result(tmp_path / "2")
    assert not list((tmp_path / "2" / "rank1").glob("checkpoint-*"))


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize(
    ("kind", "adapter", "more"),
    [
        ("bert_scratch", "none", [*NO_DROPOUT, "trainer.class_weights=balanced"]),
        ("bert_scratch", "none", [*NO_DROPOUT, "trainer/optimizer=sgd", "trainer.accumulate=3"]),
        ("bert_scratch", "lora", [*NO_DROPOUT, "adapter.config.lora_dropout=0"]),
        ("bert_scratch", "lora", [*NO_DROPOUT, "adapter.config.lora_dropout=0", RECOMPUTED]),
        ("bert", "lora", [*NO_DROPOUT, "adapter.config.lora_dropout=0", "model.dtype=bf16"]),
        ("bert_scratch", "pretrain", [*NO_DROPOUT, "trainer.best_metric=loss"]),
        ("bert_scratch", "freeze", [*NO_DROPOUT, "trainer.sampling=balanced"]),
        ("mamba_scratch", "none", [RECOMPUTED]),
        ("mamba_scratch", "pretrain", ["trainer.best_metric=loss"]),
    ],
)
def test_any_number_of_processes(
    kind: str, adapter: str, more: list[str], count: int, tmp_path: Path
) -> None:
    for n in (0, count):
        assert set(together(n, tmp_path / str(n), kind, adapter, more)) == {0}
    compare(tmp_path / "0", tmp_path / str(count))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("count", "kind", "adapter", "more"),
    [
        (2, "bert_scratch", "none", NO_DROPOUT),
        (2, "bert_scratch", "lora", [*NO_DROPOUT, "adapter.config.lora_dropout=0"]),
        (2, "bert_scratch", "pretrain", [*NO_DROPOUT, "trainer.best_metric=loss"]),
        (2, "bert_scratch", "none", [*NO_DROPOUT, RECOMPUTED]),
        (2, "mamba_scratch", "none", ["trainer/optimizer=sgd", RECOMPUTED]),
        (2, "mamba_scratch", "pretrain", ["trainer.best_metric=loss"]),
        (4, "bert_scratch", "none", NO_DROPOUT),
        (4, "mamba_scratch", "none", ["trainer/optimizer=sgd"]),
    ],
)
def test_a_model_in_parts(
    count: int, kind: str, adapter: str, more: list[str], tmp_path: Path
) -> None:
    assert set(together(0, tmp_path / "0", kind, adapter, more)) == {0}
    assert set(together(count, tmp_path / "parts", kind, adapter, [*more, FSDP])) == {0}
    compare(tmp_path / "0", tmp_path / "parts")


@pytest.mark.parametrize("device", [pytest.param("cpu", marks=pytest.mark.slow), ON_GPU])
@pytest.mark.parametrize("kind", ["bert_scratch", "mamba_scratch"])
def test_fsdp_on_one_device_trains_as_none_does(kind: str, device: str, tmp_path: Path) -> None:
    more = [f"trainer.device={device}", *(NO_DROPOUT if kind == "bert_scratch" else [])]
    assert together(0, tmp_path / "0", kind, more=more) == [0]
    assert together(1, tmp_path / "1", kind, more=[*more, FSDP]) == [0]
    compare_values(tmp_path / "0", tmp_path / "1", 1e-5 if device == "cpu" else 1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("before", "after"),
    [((4, []), (2, [])), ((2, []), (0, [])), ((0, []), (2, [FSDP])), ((4, [FSDP]), (2, []))],
)
def test_a_checkpoint_knows_no_processes(before: Any, after: Any, tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert set(together(0, whole, "bert_scratch", more=NO_DROPOUT)) == {0}
    count, more = before
    codes = together(count, broken, "bert_scratch", more=[*NO_DROPOUT, *more], last=5)
    assert 0 not in codes
    assert list(broken.glob("checkpoint-*"))
    count, more = after
    assert set(together(count, broken, "bert_scratch", more=[*NO_DROPOUT, *more])) == {0}
    found, expected = result(broken)["values"], result(whole)["values"]
    # The run did not start over.
    assert min(int(key.split()[0]) for key in found) == 5
    assert found == pytest.approx({key: expected[key] for key in found}, abs=1e-5)
    mine, theirs = (load_file(f / "tensors.safetensors")["outputs"] for f in (broken, whole))
    torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], [FSDP]], ids=["ddp", "fsdp"])
def test_as_many_processes_go_on_bit_for_bit(more: list[str], tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert set(together(2, whole, "bert_scratch", more=more)) == {0}
    assert 0 not in together(2, broken, "bert_scratch", more=more, last=5)
    assert set(together(2, broken, "bert_scratch", more=more)) == {0}
    mine, theirs = (load_file(folder / "tensors.safetensors") for folder in (broken, whole))
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


def test_shares_hold_each_row_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for count in (1, 2, 3, 4):
        monkeypatch.setattr(distributed, "world_size", lambda count=count: count)
        for rows in (1, 3, 8):
            batch, seen = {"x": torch.arange(rows), "y": torch.ones(rows, 2)}, []
            for number in range(count):
                monkeypatch.setattr(distributed, "rank", lambda number=number: number)
                mine, counts = shard_batch(batch)
                assert len(mine["x"]) == len(mine["y"]) > 0
                seen += mine["x"].tolist() if counts else []
            assert sorted(seen) == list(range(rows))
