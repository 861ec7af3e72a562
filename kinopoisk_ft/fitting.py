"""Train one approach and score it on the test set once: a network, or the baseline."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
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
from kinopoisk_ft.data.hidden import ids_digest
from kinopoisk_ft.data.preprocessing import Preprocessing
from kinopoisk_ft.data.recipe import DataSplit
from kinopoisk_ft.data.tokens import Seen, check_length, log_example, tokenize
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
from kinopoisk_ft.training.objective import Classification, balanced_weights
from kinopoisk_ft.training.precision import Precision
from kinopoisk_ft.unfinished import CHECKPOINTS

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
    seen: Seen
    history: list[dict[str, float]] = field(default_factory=list)


def fit_network(
    recipe: Recipe,
    adapter: Adapter,
    trainer: Trainer,
    data: DataSplit,
    tracker: Tracker,
    out_dir: Path,
) -> Fitted:
    """Tokenize, build, adapt, train, restore the best weights, test, save the model folder."""
    checkpoints = out_dir / CHECKPOINTS
    precision, clock = trainer.open(checkpoints)
    reset_peak_memory(precision.device)
    model_dir = out_dir / "model"
    with clock.section("tokenize"):
        tokenizer = recipe.load_tokenizer(_texts(data.train, data.preprocessing))
    with clock.section("build"):
        network = recipe.build(data.class_names, tokenizer)
        check_length(data.preprocessing.max_length, network.max_positions)
        adapted = _adapt(adapter, network, model_dir)
    with clock.section("tokenize"):
        parts, seen = _examples(data, tokenizer)
    log_example(parts["train"].input_ids[0], tokenizer)
    make_objective, parts = _above_frozen(
        trainer, network, adapted, tokenizer.pad_token_id, parts, precision, clock, tracker
    )
    weights = None
    if trainer.class_weights == "balanced":
        weights = balanced_weights(data.train["label"].to_numpy(), len(data.class_names))
    state = trainer.fit(
        adapted.module, make_objective(weights=weights), parts["train"], parts["val"],
        fresh=adapted.fresh, audit=check_gradients, precision=precision, clock=clock,
        recorder=tracker, folder=checkpoints, about=identity(data, parts["train"], parts["val"]),
    )  # fmt: skip
    with clock.section("eval"):
        # Without weights: losses on test can be compared, whatever was trained for.
        tested = trainer.test(adapted.module, make_objective(), parts["test"], precision)
    with clock.section("val"):
        validated = trainer.test(adapted.module, make_objective(), parts["val"], precision)
    peak = peak_memory_mb(precision.device)
    with clock.section("save"):
        card = make_card(network, adapted, data.class_names, **asdict(data.preprocessing))
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
        seen=seen,
        history=state.history,
    )


def identity(data: DataSplit, train: Examples, val: Examples) -> dict[str, str]:
    """Return digests of what a checkpoint was trained on, to be compared when it is read."""
    tokens = ids_digest([*train.input_ids, *val.input_ids])
    return {"split": data.split_digest, "tokens": tokens}


def _examples(data: DataSplit, tokenizer: Any) -> tuple[dict[str, Examples], Seen]:
    """Tokenize the three parts; returns them, and how much of their texts the tokens hold."""
    examples, seen = {}, Seen()
    for name, part in (("train", data.train), ("val", data.val), ("test", data.test)):
        tokens = tokenize(part["text"].tolist(), tokenizer, data.preprocessing)
        examples[name] = Examples(tokens.input_ids, part["label"].to_numpy())
        seen += tokens.seen
    return examples, seen


def _above_frozen(
    trainer: Trainer,
    network: Network,
    adapted: Adapted,
    pad_id: int,
    parts: dict[str, Examples],
    precision: Precision,
    clock: Clock,
    tracker: Tracker,
) -> tuple[Callable[..., Classification], dict[str, Examples]]:
    """Return how to make the objective, and what it reads: ids, or what frozen layers give."""
    if trainer.prefix_cache == "off":
        return partial(Classification, pad_id), parts
    cache = PrefixCache(trainer.prefix_cache, pad_id, precision, trainer.eval_batch_size)
    with clock.section("prefix"):
        prefixed = cache.apply(network, adapted.module, parts)
    prefixed.tell(tracker)
    return prefixed.objective, {**prefixed.parts}


def _texts(part: pd.DataFrame, how: Preprocessing) -> list[str]:
    """Return what a model may read of a part's texts, before any tokenizer."""
    return [how.cut(text) for text in part["text"]]


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
    recipe: Tfidf, adapter: Adapter, trainer: Trainer, data: DataSplit, out_dir: Path
) -> Fitted:
    """Fit TF-IDF and logistic regression on the train split and save it."""
    trainer.refuse_balance("the TF-IDF baseline has weights of its own: model.class_weight")
    if not isinstance(adapter, Full):
        raise UserError(
            "the TF-IDF baseline has no layers to adapt", where="adapter", fix="use adapter=none"
        )
    device = torch.device("cpu")
    reset_peak_memory(device)
    clock = Clock()
    how, size = data.preprocessing, len(data.class_names)
    train, val, test = (_texts(part, how) for part in (data.train, data.val, data.test))
    with clock.section("train"):
        recipe.fit(train, data.train["label"].to_numpy(), size)
    with clock.section("val"):
        validation, val_scores = _score(recipe, val, data.val["label"].to_numpy(), size)
    with clock.section("eval"):
        probabilities, test_scores = _score(recipe, test, data.test["label"].to_numpy(), size)
    with clock.section("save"):
        recipe.save(out_dir / "model")
        # It reads words, not tokens, so that no number of tokens says how many.
        card = Card("tfidf", list(data.class_names), **{**asdict(how), "max_length": 0})
        card.write(out_dir / "model")
    whole = [len(text) for part in (data.train, data.val, data.test) for text in part["text"]]
    read = [len(text) for text in (*train, *val, *test)]
    return Fitted(
        probabilities=probabilities,
        validation=validation,
        loss=test_scores["loss"],
        objective=val_scores[trainer.best_metric],
        trainable=recipe.parameters,
        total=recipe.parameters,
        seconds=dict(clock.seconds),
        tokens=0,
        peak_memory_mb=peak_memory_mb(device),
        device="cpu",
        precision="fp64",
        seen=Seen(characters=sum(whole), characters_seen=sum(read)),
        history=[{"step": 0, **{f"val_{key}": value for key, value in val_scores.items()}}],
    )


def _score(
    recipe: Tfidf, texts: list[str], labels: np.ndarray, num_classes: int
) -> tuple[np.ndarray, dict[str, float]]:
    probabilities = recipe.predict_proba(texts)
    predicted = torch.as_tensor(probabilities.argmax(axis=1))
    loss = log_loss(labels, probabilities, labels=list(range(num_classes)))
    scores = classification_scores(predicted, torch.tensor(labels))
    return probabilities, {**scores, "loss": float(loss)}
