"""Fit the TF-IDF baseline and score it once on the test split."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from kinopoisk_ft.adapters.base import Adapter
from kinopoisk_ft.data.leakage import Overlap
from kinopoisk_ft.data.preprocessing import TextCoverage, compute_truncated_share
from kinopoisk_ft.data.recipe import DataSplit
from kinopoisk_ft.errors import UserError
from kinopoisk_ft.files import write_folder_atomically
from kinopoisk_ft.models.card import CARD, Card
from kinopoisk_ft.models.tfidf import KIND, Tfidf
from kinopoisk_ft.statistics.metrics import classification_scores, log_loss_of
from kinopoisk_ft.tasks.result import Fitted
from kinopoisk_ft.training.clock import Clock
from kinopoisk_ft.training.device import peak_memory_mb, reset_peak_memory
from kinopoisk_ft.training.distributed.processes import world_size
from kinopoisk_ft.training.loop import Trainer


def check_baseline(adapter: Adapter, trainer: Trainer) -> None:
    """Raise UserError if the baseline does not support an option."""
    trainer.reject_class_balancing("the TF-IDF baseline has its own option, model.class_weight")
    if adapter.freezes:
        raise UserError(
            "the TF-IDF baseline has no layers to adapt", where="adapter", fix="use adapter=none"
        )
    if world_size() > 1:
        raise UserError(
            "the TF-IDF baseline cannot be fitted in several processes",
            where="torchrun",
            fix="start the run without torchrun",
        )


def fit_baseline(recipe: Tfidf, trainer: Trainer, data: DataSplit, out_dir: Path) -> Fitted:
    """Fit and score the TF-IDF baseline, and save it in the subfolder `model` of `out_dir`."""
    device = torch.device("cpu")
    reset_peak_memory(device)
    clock = Clock()
    preprocessing, classes = data.preprocessing, len(data.class_names)
    texts = {name: preprocessing.texts(split["text"]) for name, split in data.parts.items()}
    with clock.section("train"):
        recipe.fit_texts(texts["train"], data.train["label"].to_numpy(), classes)
    with clock.section("val"):
        validation, val_scores = _score(recipe, texts["val"], data.val["label"].to_numpy())
    with clock.section("eval"):
        probabilities, test_scores = _score(recipe, texts["test"], data.test["label"].to_numpy())
    with clock.section("save"):
        # The baseline reads words instead of tokens, so a limit in tokens does not apply. A prefix
        # would only add the same words to every review.
        unused = {"max_length": 0, "text_prefix": ""}
        card = Card(KIND, list(data.class_names), **{**asdict(preprocessing), **unused})
        with write_folder_atomically(out_dir / "model", CARD, card.replaced_files) as part:
            recipe.save(part)
            card.write(part)
    # Numbers of characters, because TF-IDF has no tokens.
    whole = {name: _count_characters(split["text"]) for name, split in data.parts.items()}
    read = {name: _count_characters(part) for name, part in texts.items()}
    return Fitted(
        test_probabilities=probabilities,
        val_probabilities=validation,
        test_loss=test_scores["loss"],
        objective=val_scores[trainer.best_metric],
        trainable_parameters=recipe.parameters,
        total_parameters=recipe.parameters,
        seconds=dict(clock.seconds),
        train_tokens=0,
        peak_memory_mb=peak_memory_mb(device),
        device="cpu",
        # scikit-learn computes TF-IDF and the regression in float64.
        precision="fp64",
        seen=TextCoverage(sum(map(sum, whole.values())), sum(map(sum, read.values()))),
        truncated={
            name: compute_truncated_share(whole[name], read[name]) for name in ("val", "test")
        },
        # TF-IDF is not pretrained, so the overlap is known to be zero.
        pretraining_overlap=Overlap(0, len(data.test)),
        # `record` logs the test metrics at the step of the last entry.
        history=[{"step": 0, **{f"val_{key}": value for key, value in val_scores.items()}}],
    )


def _count_characters(texts: Iterable[str]) -> list[int]:
    return [len(text) for text in texts]


def _score(
    recipe: Tfidf, texts: list[str], labels: np.ndarray
) -> tuple[np.ndarray, dict[str, float]]:
    probabilities = recipe.predict_proba(texts)
    scores = classification_scores(probabilities, labels)
    return probabilities, {**scores, "loss": log_loss_of(probabilities, labels)}
