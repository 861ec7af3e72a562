"""Train one approach and score it on the test set once: a network, or the baseline."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn.metrics import log_loss

from kinopoisk_ft.adapters.audit import check_gradients, count_parameters, log_trainable
from kinopoisk_ft.adapters.base import Adapted, Adapter
from kinopoisk_ft.adapters.peft import Peft
from kinopoisk_ft.adapters.plain import Full
from kinopoisk_ft.data.recipe import DataSplit
from kinopoisk_ft.data.tokens import check_length, log_example, tokenize
from kinopoisk_ft.errors import UserError
from kinopoisk_ft.models.baseline import Tfidf
from kinopoisk_ft.models.network import Network, Recipe
from kinopoisk_ft.models.saving import Card, make_card, save_base, save_network
from kinopoisk_ft.prefix import PrefixCache
from kinopoisk_ft.tracking.base import Tracker
from kinopoisk_ft.training.batching import Examples
from kinopoisk_ft.training.clock import Clock
from kinopoisk_ft.training.device import peak_memory_mb, reset_peak_memory
from kinopoisk_ft.training.loop import Trainer
from kinopoisk_ft.training.metrics import classification_scores
from kinopoisk_ft.training.objective import Classification

log = logging.getLogger(__name__)


@dataclass
class Fitted:
    """A trained approach as it did on the test set; times in seconds."""

    probabilities: np.ndarray  # (N, classes), in the order of the test rows
    validation: np.ndarray  # the same of the validation rows, with the weights that tested
    loss: float
    objective: float  # best validation score
    trainable: int
    total: int
    seconds: dict[str, float]
    tokens: int  # real tokens of all training batches
    peak_memory_mb: float
    device: str
    precision: str
    history: list[dict[str, float]] = field(default_factory=list)


def fit_network(
    recipe: Recipe,
    adapter: Adapter,
    trainer: Trainer,
    data: DataSplit,
    max_length: int,
    tracker: Tracker,
    out_dir: Path,
) -> Fitted:
    """Tokenize, build, adapt, train, restore the best weights, test, save the model folder."""
    precision, clock = trainer.open()
    reset_peak_memory(precision.device)
    model_dir = out_dir / "model"
    with clock.section("tokenize"):
        tokenizer = recipe.load_tokenizer(data.train["text"].tolist())
    with clock.section("build"):
        network = recipe.build(data.class_names, tokenizer)
        check_length(max_length, network.max_positions)
        adapted = _adapt(adapter, network, model_dir)
    with clock.section("tokenize"):
        parts = {
            name: _examples(part, tokenizer, max_length)
            for name, part in (("train", data.train), ("val", data.val), ("test", data.test))
        }
    log_example(parts["train"].input_ids[0], tokenizer)
    make_objective: Callable[..., Classification] = partial(Classification, tokenizer.pad_token_id)
    if trainer.prefix_cache != "off":
        pad_id, batch_size = tokenizer.pad_token_id, trainer.eval_batch_size
        cache = PrefixCache(trainer.prefix_cache, pad_id, precision, batch_size)
        with clock.section("prefix"):
            prefixed = cache.apply(network, adapted.module, parts)
        prefixed.tell(tracker)
        make_objective, parts = prefixed.objective, {**prefixed.parts}
    state = trainer.fit(
        adapted.module, make_objective(), parts["train"], parts["val"], fresh=adapted.fresh,
        audit=check_gradients, precision=precision, clock=clock, recorder=tracker,
        folder=out_dir / "checkpoints",
    )  # fmt: skip
    with clock.section("eval"):
        tested = trainer.test(adapted.module, make_objective(), parts["test"], precision)
    with clock.section("val"):
        validated = trainer.test(adapted.module, make_objective(), parts["val"], precision)
    peak = peak_memory_mb(precision.device)
    with clock.section("save"):
        card = make_card(network, adapted, data.class_names, max_length)
        save_network(network, adapted, tokenizer, card, model_dir)
    trainable, total = count_parameters(adapted.module)
    return Fitted(
        probabilities=torch.softmax(tested.outputs.double(), dim=1).numpy(),
        validation=torch.softmax(validated.outputs.double(), dim=1).numpy(),
        loss=tested.scores["loss"],
        objective=state.best_score,
        trainable=trainable,
        total=total,
        seconds=dict(clock.seconds),
        tokens=state.tokens,
        peak_memory_mb=peak,
        device=str(precision.device),
        precision=precision.kind,
        history=state.history,
    )


def _examples(part: pd.DataFrame, tokenizer: Any, max_length: int) -> Examples:
    return Examples(
        tokenize(part["text"].tolist(), tokenizer, max_length), part["label"].to_numpy()
    )


def _adapt(adapter: Adapter, network: Network, model_dir: Path) -> Adapted:
    """Apply an adapter; a base with a random start is saved first: nothing else has it."""
    if network.base is None and not isinstance(adapter, Full):
        log.warning("the base has random weights: what the adapter freezes has learnt nothing")
    if network.base is None and isinstance(adapter, Peft):
        save_base(network, model_dir)
    adapted = adapter.apply(network)
    log_trainable(adapted.module)
    return adapted


def fit_baseline(
    recipe: Tfidf, adapter: Adapter, data: DataSplit, metric: str, out_dir: Path
) -> Fitted:
    """Fit TF-IDF and logistic regression on the train split and save it."""
    if not isinstance(adapter, Full):
        raise UserError(
            "the TF-IDF baseline has no layers to adapt", where="adapter", fix="use adapter=none"
        )
    device = torch.device("cpu")
    reset_peak_memory(device)
    clock = Clock()
    with clock.section("train"):
        labels = data.train["label"].to_numpy()
        recipe.fit(data.train["text"].tolist(), labels, len(data.class_names))
    with clock.section("val"):
        validation, val = _score(recipe, data.val, len(data.class_names))
    with clock.section("eval"):
        probabilities, test = _score(recipe, data.test, len(data.class_names))
    with clock.section("save"):
        recipe.save(out_dir / "model")
        Card("tfidf", list(data.class_names), 0).write(out_dir / "model")
    return Fitted(
        probabilities=probabilities,
        validation=validation,
        loss=test["loss"],
        objective=val[metric],
        trainable=recipe.parameters,
        total=recipe.parameters,
        seconds=dict(clock.seconds),
        tokens=0,
        peak_memory_mb=peak_memory_mb(device),
        device="cpu",
        precision="fp64",
        history=[{"step": 0, **{f"val_{key}": value for key, value in val.items()}}],
    )


def _score(
    recipe: Tfidf, part: pd.DataFrame, num_classes: int
) -> tuple[np.ndarray, dict[str, float]]:
    labels = part["label"].to_numpy()
    probabilities = recipe.predict_proba(part["text"].tolist())
    predicted = torch.as_tensor(probabilities.argmax(axis=1))
    loss = log_loss(labels, probabilities, labels=list(range(num_classes)))
    scores = classification_scores(predicted, torch.tensor(labels))
    return probabilities, {**scores, "loss": float(loss)}
