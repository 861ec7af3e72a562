"""Check classifiers that read a review in windows."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from networks import ADAPTERS, NAMES, make
from quick import quick
from torch import Tensor

from kinopoisk_ft.adapters.audit import check_gradients
from kinopoisk_ft.data.preprocessing import Preprocessing
from kinopoisk_ft.data.tokens import encode_ids, find_windows
from kinopoisk_ft.errors import UserError
from kinopoisk_ft.models.pooling import WINDOW_POOLINGS, WindowPooling
from kinopoisk_ft.models.saving import load_network, make_card, save_base, save_network
from kinopoisk_ft.serving.predictor import Predictor
from kinopoisk_ft.training.batching import Examples, split_batch
from kinopoisk_ft.training.evaluate import evaluate
from kinopoisk_ft.training.objective import Classification
from kinopoisk_ft.training.precision import Precision

WINDOWS = "+model.reads_windows=true"
HOW = Preprocessing(16, "windows")
# Reviews with one window, three windows, less than one window, and seven windows.
TEXTS = [tiny.GOOD, f"{tiny.BAD} {tiny.GOOD} {tiny.BAD}", "фильм", " ".join([tiny.BAD] * 8)]
CPU = Precision("fp32", torch.device("cpu"))
CASES = quick(
    [(kind, adapter, "attention") for kind in ("pooled", "mamba") for adapter in ADAPTERS]
    + [(kind, "none", how) for kind in ("bert_scratch", "mamba2") for how in ("mean", "max")],
    3,
)  # fmt: skip


def read(texts: list[str], tokenizer: Any, labels: np.ndarray | None = None) -> Examples:
    return Examples(encode_ids(texts, tokenizer, HOW), labels, find_windows(tokenizer, HOW))


@pytest.mark.parametrize("kind", WINDOW_POOLINGS)
def test_pooling_equals_a_loop_over_the_reviews(kind: str) -> None:
    torch.manual_seed(0)
    pooling = WindowPooling(kind, 5)
    if kind == "attention":
        torch.nn.init.normal_(pooling.score.weight)
    mask = torch.zeros(3, 4, 2, dtype=torch.int64)
    for review, count in enumerate((4, 1, 2)):
        mask[review, :count, 0] = 1
    vectors = torch.randn(7, 5)
    expected = []
    for part in vectors.double().split([4, 1, 2]):
        if kind == "mean":
            expected.append(part.mean(0))
        elif kind == "max":
            expected.append(part.max(0).values)
        else:
            weights = torch.softmax(part @ pooling.score.weight[0].double(), 0)
            expected.append(weights @ part)
    torch.testing.assert_close(pooling(vectors, mask).double(), torch.stack(expected))
    assert pooling(vectors, mask.flatten(0, 1)) is vectors
    # A review without tokens also has one window.
    alone = pooling(vectors[:1], torch.zeros(1, 4, 2, dtype=torch.int64))
    torch.testing.assert_close(alone, vectors[:1])


@pytest.mark.parametrize(("kind", "adapter", "pooling"), CASES)
def test_one_review_alone_in_a_batch_and_from_disk(
    kind: str, adapter: str, pooling: str, tmp_path: Path
) -> None:
    """After training with this adapter, the logits are equal."""
    _, made, network, tokenizer = make(kind, adapter, WINDOWS, f"model.window_pooling={pooling}")
    if network.base is None and made.needs_saved_base:
        save_base(network, tmp_path)
    adapted = made.apply(network)
    module, pad_id = adapted.module, tokenizer.pad_token_id
    examples = read(TEXTS, tokenizer)
    assert network.window_pooling == pooling
    optimizer = torch.optim.SGD([p for p in module.parameters() if p.requires_grad], lr=0.05)
    for _ in range(2):
        optimizer.zero_grad()
        module.train()(**examples.pad(range(4), pad_id)).logits[:, 0].sum().backward()
        check_gradients(module)
        optimizer.step()
    with torch.no_grad():
        together = module.eval()(**examples.pad(range(4), pad_id)).logits
        alone = [module(**examples.pad([i], pad_id)).logits for i in range(4)]
    torch.testing.assert_close(torch.cat(alone), together, atol=1e-5, rtol=1e-4)
    # With nearly equal logits, a review could get the logits of another one without a difference.
    assert together[:, 0].std() > 1e-4
    card = make_card(network, adapted, NAMES, **asdict(HOW))
    assert card.note == ""
    save_network(network, adapted, tokenizer, card, tmp_path)
    torch.testing.assert_close(
        Predictor(tmp_path, "cpu").logits(TEXTS), together, atol=1e-5, rtol=1e-4
    )


@pytest.mark.parametrize("kind", ["pooled", "mamba"])
def test_a_review_of_one_window_has_the_logits_of_a_plain_sequence(kind: str) -> None:
    _, _, network, tokenizer = make(kind, "none", WINDOWS)
    torch.manual_seed(0)
    ids = tokenizer([tiny.GOOD, "фильм"])["input_ids"]
    windows = find_windows(tokenizer, Preprocessing(60, "windows"))
    module = network.module.eval()
    with torch.no_grad():
        plain, divided = (
            module(**Examples(ids, None, how).pad([0, 1], tokenizer.pad_token_id)).logits
            for how in (None, windows)
        )
    torch.testing.assert_close(divided, plain)


@pytest.mark.parametrize("kind", ["pooled", "mamba"])
def test_gradients_reach_the_encoder_through_every_window(kind: str) -> None:
    _, _, network, tokenizer = make(kind, "none", WINDOWS)
    hidden: list[Tensor] = []
    embeddings = network.module.get_submodule(network.embeddings[0])

    def keep(_: Any, __: Any, output: Tensor) -> None:
        output.retain_grad()
        hidden.append(output)

    embeddings.register_forward_hook(keep)
    batch = read(TEXTS, tokenizer).pad([3, 2], tokenizer.pad_token_id)
    network.module.train()(**batch).logits[:, 0].sum().backward()
    (states,) = hidden
    gradient = states.grad
    assert gradient is not None
    # Seven or more windows of the long review, and one of the short review; no window is padding.
    assert len(states) == int(batch["attention_mask"].any(-1).sum()) >= 8
    assert (gradient.abs().sum((1, 2)) > 0).all()


def test_parts_of_a_batch_have_the_gradients_of_the_batch() -> None:
    _, _, network, tokenizer = make("pooled", "none", WINDOWS)
    module, objective = network.module.eval(), Classification(tokenizer.pad_token_id)
    examples = read([*TEXTS, *TEXTS[::-1]], tokenizer, np.arange(8) % 2)
    batch = objective.collate(examples, np.arange(8), np.random.default_rng(0))
    gradients = []
    parts = split_batch(batch, 4)
    assert len(parts) > 2
    longest = int(examples.lengths.max())
    # No part has more tokens than four windows or the longest review.
    assert all(part["attention_mask"].sum() <= max(4 * 16, longest) for part in parts)
    for division in ([batch], parts):
        module.zero_grad()
        for part in division:
            objective.loss_sum(module, part)[0].backward()
        gradients.append(torch.cat([p.grad.flatten() for p in module.parameters()]))
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-4)


def test_words_in_the_last_of_four_windows_are_learned() -> None:
    """Only `windows` reads these words; the accuracy of `head` is that of chance."""
    generator = np.random.default_rng(0)
    labels = np.arange(64) % 2
    filler = "игра смотреть это всем никому"
    texts = [
        " ".join([*generator.permutation(filler.split() * 8), tiny.GOOD if label else tiny.BAD])
        for label in labels
    ]
    accuracies = {}
    for truncation in ("windows", "head"):
        how = Preprocessing(18, truncation, window_stride=15)
        reads = f"+model.reads_windows={str(how.reads_windows).lower()}"
        recipe, _, _, tokenizer = make("bert_scratch", "none", reads, "model.dropout=0")
        torch.manual_seed(0)
        network = recipe.build(NAMES, tokenizer)
        ids, windows = encode_ids(texts, tokenizer, how), find_windows(tokenizer, how)
        if windows is not None:
            assert {len(windows.cut(row)) for row in ids} == {4}
        train, val = (
            Examples(ids[part], labels[part], windows) for part in (slice(32), slice(32, 64))
        )
        accuracies[truncation] = fit(network.module, train, val, tokenizer.pad_token_id)
    assert accuracies["windows"] == 1.0
    assert accuracies["head"] < 0.75


def fit(module: Any, train: Examples, val: Examples, pad_id: int) -> float:
    objective = Classification(pad_id)
    optimizer = torch.optim.AdamW(module.parameters(), lr=3e-3)
    for _ in range(30):
        batch = objective.collate(train, np.arange(len(train)), np.random.default_rng(0))
        optimizer.zero_grad()
        (objective.loss_sum(module.train(), batch)[0] / len(train)).backward()
        optimizer.step()
    return evaluate(module, val, objective, CPU, 32).scores["accuracy"]


def test_what_cannot_read_windows_is_refused() -> None:
    with pytest.raises(UserError, match=r"model.pooling=pooler cannot read windows"):
        make("bert", "none", WINDOWS)
    with pytest.raises(UserError, match=r"model.pooling=last_position does not work with windows"):
        make("mamba", "none", WINDOWS, "model.pooling=last_position")
    with pytest.raises(UserError, match=r"'meen'[^?]*did you mean 'mean'\?"):
        make("pooled", "none", WINDOWS, "model.window_pooling=meen")


def test_a_plain_classifier_is_saved_without_windows(tmp_path: Path) -> None:
    _, made, network, tokenizer = make("pooled")
    adapted = made.apply(network)
    save_network(
        network, adapted, tokenizer, make_card(network, adapted, NAMES, **asdict(HOW)), tmp_path
    )
    module, _, card = load_network(tmp_path)
    assert card.window_pooling is None
    assert module.window_pooling is None
