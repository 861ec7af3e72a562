"""Check that micro-batches train like whole batches, within their limit of tokens."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import make
from quick import quick
from short_fit import short_fit

from kinopoisk_ft.training import loop
from kinopoisk_ft.training.batching import Examples, depends_on_padding, split_batch
from kinopoisk_ft.training.distributed import processes
from kinopoisk_ft.training.objective import Classification
from kinopoisk_ft.training.precision import Precision


@pytest.mark.parametrize("kind", ["bert_scratch", "mamba_scratch"])
@pytest.mark.parametrize("accumulate", quick([3, 1], 1))
def test_micro_batches_cover_the_batch(kind: str, accumulate: int, tmp_path: Path) -> None:
    settings = [f"trainer.accumulate={accumulate}"]
    options: dict[str, Any] = {"kind": kind, "class_weights": torch.tensor([0.5, 1.7])}
    whole, expected = short_fit(tmp_path / "whole", *settings, **options)
    for rows in (5, 1):
        state, found = short_fit(
            tmp_path / str(rows), *settings, f"trainer.micro_batch_size={rows}", **options
        )
        assert found.of("micro_batch_size") == [rows] * state.step
        assert state.step == whole.step == (4 if accumulate == 1 else 2)
        assert state.tokens == whole.tokens
        np.testing.assert_allclose(found.of("train_loss"), expected.of("train_loss"), atol=1e-6)
        np.testing.assert_allclose(found.of("val_loss"), expected.of("val_loss"), atol=1e-6)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(lengths=st.lists(st.integers(0, 40), min_size=1, max_size=17), rows=st.integers(1, 18),
       trim=st.booleans())  # fmt: skip
def test_micro_batches_are_complete_balanced_and_within_the_limit(
    lengths: list[int], rows: int, trim: bool
) -> None:
    longest = max(1, *lengths)
    mask = (torch.arange(longest) < torch.tensor(lengths)[:, None]).long()
    ids = torch.arange(mask.numel()).view_as(mask) * mask
    batch = {"input_ids": ids, "attention_mask": mask, "labels": torch.arange(len(lengths))}
    cut = split_batch(batch, rows, trim)
    order = torch.cat([part["labels"] for part in cut])
    assert sorted(order.tolist()) == list(range(len(lengths)))
    for part in cut:
        for key in ("input_ids", "attention_mask"):
            width = part[key].shape[1]
            assert torch.equal(part[key], batch[key][part["labels"], :width])
            assert not batch[key][part["labels"], width:].any()
            assert trim or width == longest
    sizes = [part["input_ids"].numel() for part in cut]
    assert max(sizes) <= rows * longest
    # There are no more parts than the limit of rows requires.
    assert len(cut) <= -(-len(lengths) // rows)
    if len(lengths) <= rows:
        assert [len(part["labels"]) for part in cut] == [len(lengths)]
    elif not trim:
        counts = [len(part["labels"]) for part in cut]
        assert max(counts) == -(-len(lengths) // len(cut))


def test_all_processes_compute_the_same_number_of_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The forward passes of FSDP wait for each other, even if one process has shorter reviews."""
    _, _, network, _ = make("bert_scratch")
    batch = Examples([[5] * 30, *[[5] * 3] * 15], np.arange(16) % 2)
    module, objective = network.module, Classification(0)
    collated = objective.collate(batch, np.arange(16), np.random.default_rng(0))
    state: Any = SimpleNamespace(
        model=module, wrapped_model=module, objective=objective,
        optimizer=torch.optim.SGD(module.parameters()),
        precision=Precision("fp32", torch.device("cpu")),
    )  # fmt: skip
    monkeypatch.setattr(loop, "all_reduce_sum", lambda value: value)
    monkeypatch.setattr(loop, "world_size", lambda: 2)
    monkeypatch.setattr(processes, "world_size", lambda: 2)
    rows: dict[int, list[int]] = {0: [], 1: []}
    for rank in rows:
        monkeypatch.setattr(processes, "rank", lambda rank=rank: rank)
        hook = module.register_forward_pre_hook(
            lambda _, __, kwargs, rank=rank: rows[rank].append(len(kwargs["input_ids"])),
            with_kwargs=True,
        )
        loop.compute_gradients(state, [collated], 2)
        hook.remove()
    # In the first part, process 1 repeats the only row, which does not count there.
    assert rows == {0: [1, 8], 1: [1, 7]}


def test_pads_that_a_model_reads_stay(tmp_path: Path) -> None:
    settings = ["model.pooling=last_position"]
    whole, expected = short_fit(tmp_path / "whole", *settings, kind="mamba_scratch")
    _, found = short_fit(
        tmp_path / "cut", *settings, "trainer.micro_batch_size=2", kind="mamba_scratch"
    )
    assert depends_on_padding(whole.model)
    assert not depends_on_padding(make("mamba_scratch")[2].module)
    np.testing.assert_allclose(found.of("train_loss"), expected.of("train_loss"), atol=1e-6)


@pytest.mark.parametrize(("rows", "problem"), [(0, " cannot be 0"), (13, "=13 is larger")])
def test_a_micro_batch_out_of_range_is_refused(rows: int, problem: str, tmp_path: Path) -> None:
    with pytest.raises(Exception, match=f"trainer.micro_batch_size{problem}"):
        short_fit(tmp_path, f"trainer.micro_batch_size={rows}")
