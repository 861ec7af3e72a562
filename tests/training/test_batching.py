"""Check that batches hold each review once, sorted by length, and the language-model labels."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from kinopoisk_ft.data.windows import Windows
from kinopoisk_ft.training.batching import Examples, batch_by_length, group_by_length
from kinopoisk_ft.training.loop import training_batches
from kinopoisk_ft.training.objective import LanguageModel, MaskedLanguageModel


@given(
    lengths=st.lists(st.integers(1, 400), min_size=1, max_size=300),
    batch_size=st.integers(1, 40),
    seed=st.integers(0, 9),
)
# The short reviews would fit into one batch of 50 rows.
@example(lengths=[400, *([1] * 50)], batch_size=2, seed=0)
def test_an_epoch_serves_every_review_once(lengths: list[int], batch_size: int, seed: int) -> None:
    array = np.array(lengths)
    trained, evaluated = (
        group_by_length(array, batch_size, seed, 0),
        batch_by_length(Examples([[5] * length for length in lengths]), batch_size),
    )
    for batches in (trained, evaluated):
        assert sorted(np.concatenate(batches)) == list(range(len(lengths)))
        assert max(lengths) in array[batches[0]]
    assert all(0 < len(batch) <= batch_size for batch in trained)
    assert len(trained) == -(-len(lengths) // batch_size)
    padded = [len(batch) * array[batch].max() for batch in evaluated]
    assert all(0 < tokens <= batch_size * max(lengths) for tokens in padded)
    assert all(len(batch) <= 8 * batch_size for batch in evaluated)


@given(lengths=st.lists(st.integers(1, 60), min_size=1, max_size=40), batch_size=st.integers(1, 9))
def test_evaluation_counts_windows(lengths: list[int], batch_size: int) -> None:
    """A batch has as many tokens as `batch_size` windows of 8 tokens, or a single review."""
    windows = Windows(room=6, stride=4, max_windows=None, left=1, right=1)
    examples = Examples([[5] * length for length in lengths], None, windows)
    batches = batch_by_length(examples, batch_size)
    assert sorted(np.concatenate(batches)) == list(range(len(lengths)))
    longest = min(8, max(lengths))
    for rows in batches:
        assert len(rows) == 1 or examples.lengths[rows].sum() <= batch_size * longest


def test_order_depends_on_seed_and_epoch_alone() -> None:
    lengths = np.arange(1, 200)

    def order(seed: int, epoch: int) -> list[int]:
        return np.concatenate(group_by_length(lengths, 8, seed, epoch)).tolist()

    assert order(1, 0) == order(1, 0)
    assert order(1, 0) != order(1, 1) != order(2, 1)


def test_grouping_saves_padding() -> None:
    lengths = np.random.default_rng(0).integers(10, 500, 2000)
    padded = sum(len(b) * lengths[b].max() for b in group_by_length(lengths, 16, 0, 0))
    plain = sum(len(b) * b.max() for b in np.split(lengths, 125))
    assert padded < 1.05 * lengths.sum() < plain


def test_next_token_labels() -> None:
    data = Examples([[5, 6, 7], [8]])
    batch = LanguageModel(0).collate(data, np.array([0, 1]), np.random.default_rng(0))
    assert batch["labels"].tolist() == [[6, 7, -100], [-100, -100, -100]]
    assert LanguageModel(0).count(batch) == 2


def test_masked_tokens_by_share_and_never_special() -> None:
    data = Examples([[1, *([9] * 200), 2]] * 50)
    objective = MaskedLanguageModel(0, 4, 100, [0, 1, 2, 3, 4], 0.15)
    batch = objective.collate(data, np.arange(50), np.random.default_rng(0))
    chosen = batch["labels"] != -100
    assert chosen.float().mean().item() == pytest.approx(0.15, abs=0.01)
    assert set(batch["labels"][chosen].tolist()) == {9}
    ids = batch["input_ids"][chosen]
    assert (ids == 4).float().mean().item() == pytest.approx(0.8, abs=0.03)
    assert (ids == 9).float().mean().item() == pytest.approx(0.1, abs=0.03)
    assert torch.equal(batch["input_ids"][:, 0], torch.ones(50, dtype=torch.int64))


def test_each_batch_of_each_epoch_masks_other_tokens() -> None:
    """The reviews are equal, so only the masks can differ."""
    data = Examples([[1, *([9] * 60), 2]] * 8)
    objective = MaskedLanguageModel(0, 4, 100, [0, 1, 2, 3, 4], 0.15)
    state: Any = SimpleNamespace(step=0, steps=None, objective=objective)
    settings: Any = SimpleNamespace(
        seed=1, batch_size=2, accumulate=2, sampling="shuffled", steps_per_epoch=lambda _: 2
    )
    steps = list(itertools.islice(training_batches(data, state, settings), 4))
    masks = {batch["labels"].numpy().tobytes() for step in steps for batch in step}
    assert len(masks) == 8
    # A run that resumes in the second epoch masks the same tokens.
    state.step = 3
    for again, first in zip(next(training_batches(data, state, settings)), steps[3], strict=True):
        assert torch.equal(again["labels"], first["labels"])
