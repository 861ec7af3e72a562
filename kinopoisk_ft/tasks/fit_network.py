"""Train a network and score it once on the test set."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from kinopoisk_ft.adapters.audit import check_gradients, count_parameters, log_trainable
from kinopoisk_ft.adapters.base import Adapter
from kinopoisk_ft.data.leakage import Overlap, PretrainingTexts
from kinopoisk_ft.data.preprocessing import TextCoverage
from kinopoisk_ft.data.recipe import DataSplit
from kinopoisk_ft.data.tokens import Tokens, check_length, ids_digest, log_example, tokenize
from kinopoisk_ft.files import write_folder_atomically
from kinopoisk_ft.models.card import CARD
from kinopoisk_ft.models.network import Adapted, ModelRecipe, Network
from kinopoisk_ft.models.saving import make_card, save_base, save_network
from kinopoisk_ft.prefix_cache.cache import PrefixCache
from kinopoisk_ft.run_folder import CHECKPOINTS
from kinopoisk_ft.tasks.inputs import FitInputs
from kinopoisk_ft.tasks.result import Fitted
from kinopoisk_ft.tracking.base import Tracker
from kinopoisk_ft.training.batching import Examples
from kinopoisk_ft.training.clock import Clock
from kinopoisk_ft.training.device import peak_memory_mb, reset_peak_memory
from kinopoisk_ft.training.distributed.processes import is_main, main_first
from kinopoisk_ft.training.distributed.sharding import gather_model
from kinopoisk_ft.training.loop import Trainer
from kinopoisk_ft.training.objective import Classification, balanced_weights
from kinopoisk_ft.training.precision import Precision

log = logging.getLogger(__name__)


def fit_network(recipe: ModelRecipe, inputs: FitInputs) -> Fitted:
    """Tokenize, build, adapt, train, restore the best weights, test, save the model folder."""
    trainer, data = inputs.trainer, inputs.data
    checkpoints, model_dir = inputs.out_dir / CHECKPOINTS, inputs.out_dir / "model"
    precision, clock = trainer.open(checkpoints)
    reset_peak_memory(precision.device)
    with clock.section("tokenize"), main_first():
        tokenizer = recipe.load_tokenizer(data.preprocessing.texts(data.train["text"]))
    with clock.section("build"), main_first():
        network = recipe.build(data.class_names, tokenizer)
        check_length(data.preprocessing.max_length, network.max_positions)
        adapted = _adapt(inputs.adapter, network, model_dir)
    if adapted.targets:
        inputs.tracker.tags({"adapter_targets": adapted.targets})
    read_before = _read_before(network, data)
    with clock.section("tokenize"), main_first():
        parts, tokens = _examples(data, tokenizer)
    log_example(parts["train"].input_ids[0], tokenizer)
    make_objective, parts = _above_frozen(
        trainer, network, adapted, tokenizer.pad_token_id, parts, precision, clock, inputs.tracker
    )
    weights = None
    if trainer.class_weights == "balanced":
        weights = balanced_weights(data.train["label"].to_numpy(), len(data.class_names))
    objective = make_objective(weights=weights, loss=trainer.loss)
    state = trainer.fit(
        adapted.module, objective, parts["train"], parts["val"],
        fresh=adapted.fresh, audit=check_gradients, precision=precision, clock=clock,
        recorder=inputs.tracker, folder=checkpoints,
        about=identity(data, parts["train"], parts["val"]),
    )  # fmt: skip
    with clock.section("eval"):
        # Cross-entropy without weights, so that losses on test can be compared, whatever the loss
        # in training.
        tested = trainer.test(adapted.module, make_objective(), parts["test"], precision)
    peak = peak_memory_mb(precision.device)
    with clock.section("save"):
        _save(network, adapted, tokenizer, inputs)
    trainable, total = count_parameters(adapted.module)
    return Fitted(
        probabilities=torch.softmax(tested.outputs.double(), dim=1).numpy(),
        validation=torch.softmax(state.best_outputs.double(), dim=1).numpy(),
        loss=tested.scores["loss"],
        objective=state.best_score,
        trainable=trainable,
        total=total,
        seconds=dict(clock.seconds),
        tokens=state.tokens,
        peak_memory_mb=peak,
        device=str(precision.device),
        precision=precision.kind,
        seen=sum((part.seen for part in tokens.values()), TextCoverage()),
        truncated={name: tokens[name].truncated for name in ("val", "test")},
        read_before=read_before,
        history=state.history,
    )


def _read_before(network: Network, data: DataSplit) -> Overlap | None:
    """Return which test reviews the base was pretrained on, and warn where there are any."""
    found = PretrainingTexts.of(network.base).overlap(data.test["text"].tolist())
    if found is None:
        log.info("whether the base was pretrained on test reviews is unknown: it has no record")
    elif found.shared:
        told = "the base was pretrained on %d of the %d test reviews: its scores may be flattered"
        log.warning(told, found.shared, found.total)
    return found


def identity(data: DataSplit, train: Examples, val: Examples) -> dict[str, str]:
    """Return digests of what a checkpoint was trained on, to be compared when it is read."""
    tokens = ids_digest([*train.input_ids, *val.input_ids])
    return {"split": data.split_digest, "tokens": tokens}


def _save(network: Network, adapted: Adapted, tokenizer: Any, inputs: FitInputs) -> None:
    """Write the model folder, whole, whatever part of the model each process keeps."""
    gather_model(adapted.module)
    if is_main():
        data = inputs.data
        card = make_card(
            network, adapted, data.class_names, recipe=inputs.options, **asdict(data.preprocessing)
        )
        with write_folder_atomically(inputs.out_dir / "model", CARD) as part:
            save_network(network, adapted, tokenizer, card, part)


def _examples(data: DataSplit, tokenizer: Any) -> tuple[dict[str, Examples], dict[str, Tokens]]:
    """Tokenize the three parts; returns them as the loop reads them, and their tokens."""
    frames = {"train": data.train, "val": data.val, "test": data.test}
    tokens = {
        name: tokenize(part["text"].tolist(), tokenizer, data.preprocessing)
        for name, part in frames.items()
    }
    examples = {
        name: Examples(tokens[name].input_ids, part["label"].to_numpy())
        for name, part in frames.items()
    }
    return examples, tokens


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
    rows = min(trainer.batch_size, trainer.eval_batch_size)  # no more memory than steps take
    cache = PrefixCache(trainer.prefix_cache, pad_id, precision, rows)
    with clock.section("prefix"):
        cached = cache.apply(network, adapted.module, parts)
    cached.record(tracker)
    return cached.make_objective, {**cached.parts}


def _adapt(adapter: Adapter, network: Network, model_dir: Path) -> Adapted:
    """Apply an adapter; a base with a random start is saved first: nothing else has it."""
    if network.base is None and getattr(adapter, "freezes", True):
        log.warning("the base has random weights: what the adapter freezes has learnt nothing")
    if network.base is None and getattr(adapter, "needs_saved_base", False):
        save_base(network, model_dir)
    adapted = adapter.apply(network)
    log_trainable(adapted.module)
    return adapted
