"""Train a network, score it once on the test split, and save it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from kinopoisk_ft.adapters.audit import (
    check_gradients,
    count_depths,
    count_parameters,
    log_trainable,
)
from kinopoisk_ft.adapters.base import Adapter
from kinopoisk_ft.adapters.plain import BitFit, Freeze, Full, Head
from kinopoisk_ft.console import silence_logs
from kinopoisk_ft.data.leakage import Overlap, PretrainingTexts
from kinopoisk_ft.data.preprocessing import TextCoverage
from kinopoisk_ft.data.recipe import DataSplit
from kinopoisk_ft.data.tokens import (
    Tokens,
    check_length,
    find_windows,
    ids_digest,
    log_example,
    tokenize,
)
from kinopoisk_ft.errors import UserError
from kinopoisk_ft.files import write_folder_atomically
from kinopoisk_ft.models.card import CARD
from kinopoisk_ft.models.network import Adapted, ModelRecipe, Network
from kinopoisk_ft.models.saving import make_card, save_base, save_network
from kinopoisk_ft.prefix_cache.cache import PrefixCache
from kinopoisk_ft.prefix_cache.split import check_split
from kinopoisk_ft.prefix_cache.storage import check_locks
from kinopoisk_ft.run_folder import CHECKPOINTS
from kinopoisk_ft.tasks.result import Fitted
from kinopoisk_ft.tracking.base import Tracker
from kinopoisk_ft.training.batching import Examples
from kinopoisk_ft.training.clock import Clock
from kinopoisk_ft.training.device import reset_peak_memory
from kinopoisk_ft.training.distributed.processes import is_main, main_first
from kinopoisk_ft.training.distributed.sharding import gather_model
from kinopoisk_ft.training.loop import Trainer
from kinopoisk_ft.training.objective import Classification, compute_balanced_weights
from kinopoisk_ft.training.precision import Precision

log = logging.getLogger(__name__)


def check_network(recipe: ModelRecipe, adapter: Adapter, trainer: Trainer) -> None:
    """Check that the architecture supports the adapter, and that the prefix cache can be used.

    The check needs neither data nor weights. Adapters of PEFT and of users are checked later: their
    options may name modules of the head, and the kind of head depends on the pretrained weights.

    Raises:
        UserError: the architecture does not support the adapter or the cache, or the folder of the
            cache cannot be locked.
    """
    if trainer.prefix_cache != "off":
        check_locks()
    # Building a network draws random numbers.
    with torch.random.fork_rng(), silence_logs():
        network = recipe.build_skeleton()
        if network is None or not isinstance(adapter, Full | Freeze | Head | BitFit):
            return
        adapted = adapter.apply(network)
        if trainer.prefix_cache == "off":
            return
        try:
            check_split(network, adapted.module.eval())
        except RuntimeError as error:
            # Some architectures read values, which the meta device does not have.
            log.debug("the prefix cache is checked later, with the weights: %s", error)


@dataclass(frozen=True)
class FitInputs:
    """The arguments of `fit_network` other than the model.

    Args:
        out_dir: output folder of the run; the model is saved in the subfolder `model`.
        options: the config node `model`. It is saved in the model card if loading the model
            requires these options; see `make_card`.
    """

    adapter: Adapter
    trainer: Trainer
    data: DataSplit
    tracker: Tracker
    out_dir: Path
    options: dict[str, Any]


def fit_network(recipe: ModelRecipe, inputs: FitInputs) -> Fitted:
    """Train a network, then test and save the best weights."""
    trainer, data, tracker = inputs.trainer, inputs.data, inputs.tracker
    checkpoints, model_dir = inputs.out_dir / CHECKPOINTS, inputs.out_dir / "model"
    precision, clock = trainer.open(checkpoints)
    reset_peak_memory(precision.device)
    # Rank 0 downloads and tokenizes first; the other ranks then read its caches.
    with clock.section("tokenize"), main_first():
        tokenizer = recipe.load_tokenizer(data.preprocessing.texts(data.train["text"]))
    with clock.section("build"), main_first():
        network = _build(recipe, data, tokenizer)
        check_length(data.preprocessing.max_length, network.max_positions)
        adapted = _apply_adapter(inputs.adapter, network, model_dir)
    if adapted.targets:
        tracker.tags({"adapter_targets": adapted.targets})
    overlap = _measure_pretraining_overlap(network, data)
    with clock.section("tokenize"), main_first():
        parts, tokens = _tokenize_splits(data, tokenizer)
    log_example(parts["train"].input_ids[0], tokenizer)
    make_objective, parts = _cache_frozen_layers(
        trainer, network, adapted, tokenizer.pad_token_id, parts, precision, clock, tracker
    )
    weights = None
    if trainer.class_weights == "balanced":
        weights = compute_balanced_weights(data.train["label"].to_numpy(), len(data.class_names))
    objective = make_objective(weights=weights, loss=trainer.loss)
    state = trainer.fit(
        adapted.module, objective, parts["train"], parts["val"],
        fresh=adapted.fresh, audit=check_gradients, precision=precision, clock=clock,
        recorder=tracker, folder=checkpoints,
        about=digest_inputs(data, parts["train"], parts["val"]),
        depths=None if trainer.layer_decay is None else count_depths(network, adapted.module),
    )  # fmt: skip
    with clock.section("eval"):
        # The test loss is cross-entropy without class weights, so that it can be compared between
        # runs that train with different losses.
        tested = trainer.test(adapted.module, make_objective(), parts["test"], precision)
    # Read before the model is saved, so that saving does not count as memory of training.
    peak = state.measure_peak_memory()
    with clock.section("save"):
        _save_model(network, adapted, tokenizer, inputs)
    trainable, total = count_parameters(adapted.module)
    return Fitted(
        test_probabilities=torch.softmax(tested.outputs.double(), dim=1).numpy(),
        val_probabilities=torch.softmax(state.best_outputs.double(), dim=1).numpy(),
        test_loss=tested.scores["loss"],
        objective=state.best_score,
        trainable_parameters=trainable,
        total_parameters=total,
        seconds=dict(clock.seconds),
        train_tokens=state.tokens,
        peak_memory_mb=peak,
        device=str(precision.device),
        precision=precision.kind,
        seen=sum((part.seen for part in tokens.values()), TextCoverage()),
        truncated={name: tokens[name].truncated for name in ("val", "test")},
        pretraining_overlap=overlap,
        history=state.history,
        head_was_fitted=trainer.head_first or (network.base is not None and not network.fresh),
    )


def _build(recipe: ModelRecipe, data: DataSplit, tokenizer: Any) -> Network:
    recipe.reads_windows = data.preprocessing.reads_windows
    network = recipe.build(data.class_names, tokenizer)
    if recipe.reads_windows and network.window_pooling is None:
        raise UserError(
            f"{type(recipe).__name__} cannot read a review in windows",
            where="data.truncation",
            fix="set data.truncation to head, tail or head_tail, or use another model",
        )
    return network


def _measure_pretraining_overlap(network: Network, data: DataSplit) -> Overlap | None:
    # Pretraining also records its texts after cleaning and before truncation.
    overlap = PretrainingTexts.of(network.base).overlap(data.test["text"].tolist())
    if overlap is None:
        log.info("the pretraining texts of the base model are unknown and may include test reviews")
    elif overlap.shared:
        log.warning(
            "the base model was pretrained on %d of the %d test reviews: scores may be too high",
            overlap.shared, overlap.total,
        )  # fmt: skip
    return overlap


def digest_inputs(data: DataSplit, train: Examples, val: Examples) -> dict[str, str]:
    """Return digests of the inputs; a run resumes only from a checkpoint with the same digests."""
    # The test split does not influence training, so its tokens may change.
    tokens = ids_digest([*train.input_ids, *val.input_ids])
    inputs = {"split": data.split_digest, "tokens": tokens}
    # Pretraining has no labels.
    if train.labels is not None and val.labels is not None:
        inputs["labels"] = ids_digest([train.labels.tolist(), val.labels.tolist()])
    return inputs


def _save_model(network: Network, adapted: Adapted, tokenizer: Any, inputs: FitInputs) -> None:
    # All ranks take part, because gathering is a collective operation.
    gather_model(adapted.module)
    if is_main():
        data = inputs.data
        # The card contains the preprocessing, so that prediction reads texts in the same way.
        card = make_card(
            network, adapted, data.class_names, inputs.options, **asdict(data.preprocessing)
        )
        with write_folder_atomically(inputs.out_dir / "model", CARD, card.replaced_files) as part:
            save_network(network, adapted, tokenizer, card, part)


def _tokenize_splits(
    data: DataSplit, tokenizer: Any
) -> tuple[dict[str, Examples], dict[str, Tokens]]:
    tokens = {
        name: tokenize(part["text"].tolist(), tokenizer, data.preprocessing)
        for name, part in data.parts.items()
    }
    # `Examples` stores whole reviews, and divides them into windows later.
    windows = find_windows(tokenizer, data.preprocessing)
    examples = {
        name: Examples(tokens[name].input_ids, part["label"].to_numpy(), windows)
        for name, part in data.parts.items()
    }
    return examples, tokens


def _cache_frozen_layers(
    trainer: Trainer,
    network: Network,
    adapted: Adapted,
    pad_id: int,
    parts: dict[str, Examples],
    precision: Precision,
    clock: Clock,
    tracker: Tracker,
) -> tuple[Callable[..., Classification], dict[str, Examples]]:
    if trainer.prefix_cache == "off":
        return partial(Classification, pad_id), parts
    # With this batch size, the cache needs no more memory than training and evaluation.
    rows = min(trainer.batch_size, trainer.eval_batch_size)
    cache = PrefixCache(trainer.prefix_cache, pad_id, precision, rows)
    with clock.section("prefix"):
        cached = cache.apply(network, adapted.module, parts)
    cached.record(tracker)
    # Type checkers do not accept a dict[str, CachedExamples] as a dict[str, Examples].
    return cached.make_objective, {**cached.parts}


def _apply_adapter(adapter: Adapter, network: Network, model_dir: Path) -> Adapted:
    if network.base is None and adapter.freezes:
        log.warning(
            "the model has random weights, and the layers that the adapter freezes stay random"
        )
    if network.base is None and adapter.needs_saved_base and is_main():
        # A saved adapter does not contain its base, whose random weights exist only here. Other
        # ranks have temporary folders.
        save_base(network, model_dir)
    base = Path(network.base or "")
    if base.is_relative_to(model_dir.resolve()):
        # Saving the model would delete the files of its base.
        raise UserError(
            "the base model is in the folder to which this run saves its model",
            where=f"model.name={base}",
            fix="choose another output_dir",
        )
    adapted = adapter.apply(network)
    log_trainable(adapted.module)
    return adapted
