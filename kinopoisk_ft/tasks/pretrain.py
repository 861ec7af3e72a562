"""Run the task `pretrain`: train a base model on unlabelled texts."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

from hydra.utils import instantiate

from kinopoisk_ft.adapters.audit import (
    check_gradients,
    count_depths,
    count_parameters,
    log_trainable,
)
from kinopoisk_ft.adapters.base import Adapter
from kinopoisk_ft.data.leakage import PretrainingTexts
from kinopoisk_ft.data.recipe import DataSplit
from kinopoisk_ft.data.tokens import check_length, find_windows, log_example, tokenize
from kinopoisk_ft.errors import UserError
from kinopoisk_ft.files import write_folder_atomically
from kinopoisk_ft.models.card import MODEL_FILES
from kinopoisk_ft.models.network import Network
from kinopoisk_ft.models.saving import save_language_model
from kinopoisk_ft.provenance import describe_environment
from kinopoisk_ft.run_folder import CHECKPOINTS
from kinopoisk_ft.tasks.fit_network import digest_inputs
from kinopoisk_ft.tasks.record import write_json
from kinopoisk_ft.tasks.result import Result
from kinopoisk_ft.tracking.base import Tracker
from kinopoisk_ft.training.batching import Examples
from kinopoisk_ft.training.distributed.processes import is_main, main_first
from kinopoisk_ft.training.distributed.sharding import gather_model
from kinopoisk_ft.training.losses import Loss
from kinopoisk_ft.training.objective import LanguageModel, MaskedLanguageModel


def pretrain(
    cfg: Any, tracker: Tracker, run_id: str, out_dir: Path, *, mask_share: float, save_to: str
) -> Result:
    """Train a language model on the train split, and save the model for fine-tuning.

    The validation loss selects the best weights. The test split is not used.

    Args:
        mask_share: fraction of the tokens to predict, for models with a mask token.
        save_to: folder for the pretrained model. Other runs can use this folder as `model.name`.
    """
    recipe, adapter, trainer = (instantiate(cfg[key]) for key in ("model", "adapter", "trainer"))
    recipe.check_pretraining()
    if trainer.gradient_checkpointing:
        recipe.check_gradient_checkpointing()
    _check_options(adapter, trainer)
    with main_first():
        data: DataSplit = instantiate(cfg.data).load()
    checkpoints = out_dir / CHECKPOINTS
    precision, clock = trainer.open(checkpoints)
    preprocessing = data.preprocessing
    with main_first():
        tokenizer = recipe.load_tokenizer(preprocessing.texts(data.train["text"]))
        network = recipe.build_lm(tokenizer)
        check_length(preprocessing.max_length, network.max_positions)
        windows = find_windows(tokenizer, preprocessing)
        # A language model does not pool windows, so each window becomes a separate example.
        train, val = (
            Examples(
                tokenize(part["text"].tolist(), tokenizer, preprocessing).input_ids, windows=windows
            ).split_windows()
            for part in (data.train, data.val)
        )
    log_example(train.input_ids[0], tokenizer)
    log_trainable(network.module)
    objective = make_language_model(tokenizer, mask_share, trainer.loss)
    # `fresh` is empty, because there is no head with a separate learning rate.
    state = trainer.fit(
        network.module, objective, train, val, fresh=(), audit=check_gradients,
        precision=precision, clock=clock, recorder=tracker, folder=checkpoints,
        about=digest_inputs(data, train, val),
        depths=None if trainer.layer_decay is None else count_depths(network, network.module),
    )  # fmt: skip
    folder = Path(save_to).absolute()
    gather_model(network.module)
    if is_main():
        _save_base(network, tokenizer, data, folder)
        write_json(out_dir / "environment.json", describe_environment(precision.device))
    trainable, total = count_parameters(network.module)
    return Result(
        scores={},
        train_seconds=clock.seconds["train"],
        # There is no test, so this is the time of validation.
        eval_seconds=clock.seconds["val"],
        trainable_parameters=trainable,
        total_parameters=total,
        run_id=run_id,
        model_dir=str(folder),
        objective=state.best_score,
    )


def _check_options(adapter: Adapter, trainer: Any) -> None:
    # The learning rate of such an adapter is too high for the weights of a whole model.
    if adapter.freezes:
        raise UserError(
            "pretraining trains all weights, so it cannot use an adapter",
            where="adapter",
            fix="use adapter=none",
        )
    if trainer.prefix_cache != "off":
        raise UserError(
            "pretraining trains every layer, so there are no frozen layers to cache",
            where="trainer.prefix_cache",
            fix="use trainer.prefix_cache=off",
        )
    if trainer.head_first:
        raise UserError(
            "pretraining has no classes, so no output layer can be fitted first",
            where="trainer.head_first",
            fix="use trainer.head_first=false",
        )
    if trainer.best_metric != "loss":
        raise UserError(
            f"pretraining has no classes, so it cannot compute {trainer.best_metric}",
            where="trainer.best_metric",
            fix="use trainer.best_metric=loss",
        )
    trainer.reject_class_balancing("pretraining has no classes")


def _save_base(network: Network, tokenizer: Any, data: DataSplit, folder: Path) -> None:
    # The validation texts are also recorded, because they selected the weights.
    texts = itertools.chain(data.train["text"], data.val["text"])
    record = PretrainingTexts.of(network.base).add(texts)
    # transformers refuses a folder without config.json, so this file comes last.
    with write_folder_atomically(folder, "config.json", MODEL_FILES) as part:
        save_language_model(network, tokenizer, part)
        record.write(part)


def make_language_model(tokenizer: Any, mask_share: float, loss: Loss) -> LanguageModel:
    """Return the objective of pretraining.

    If the tokenizer has a mask token, masked tokens are predicted, otherwise the next token.
    """
    if tokenizer.mask_token_id is None:
        return LanguageModel(tokenizer.pad_token_id, loss)
    # The length of a tokenizer includes added tokens, unlike its `vocab_size`.
    special, size = tokenizer.all_special_ids, len(tokenizer)
    return MaskedLanguageModel(
        tokenizer.pad_token_id, tokenizer.mask_token_id, size, special, mask_share, loss
    )
