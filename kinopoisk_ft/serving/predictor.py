"""Classify texts with a saved model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from kinopoisk_ft.console import silence_libraries
from kinopoisk_ft.data.cleaning import has_lone_surrogate
from kinopoisk_ft.data.preprocessing import Preprocessing
from kinopoisk_ft.errors import UserError
from kinopoisk_ft.models.card import Card, read_card
from kinopoisk_ft.models.tfidf import load_estimator
from kinopoisk_ft.models.untrusted import explain_load_errors
from kinopoisk_ft.training.batching import Examples
from kinopoisk_ft.training.device import choose_device, limit_threads
from kinopoisk_ft.training.evaluate import predict
from kinopoisk_ft.training.objective import Classification
from kinopoisk_ft.training.precision import Precision

# Texts per forward pass.
BATCH_SIZE = 32


def check_texts(texts: Sequence[object], where: str) -> None:
    """Raise UserError if a text is blank, not a string, or not valid Unicode."""
    wrong = [i for i, text in enumerate(texts) if not _is_text(text)]
    if wrong:
        raise UserError(
            f"{len(wrong)} of {len(texts)} texts are empty, not strings or not valid Unicode; "
            f"the first is row {wrong[0] + 1}",
            where=where,
            fix="correct or remove these rows",
        )


def _is_text(text: object) -> bool:
    return isinstance(text, str) and bool(text.strip()) and not has_lone_surrogate(text)


class Predictor:
    """A saved model that classifies texts.

    The attribute `estimator` is the TF-IDF classifier, or None for a network. The attributes
    `module` and `tokenizer` exist only for a network.

    Args:
        folder: a model folder with the card `kinopoisk_ft.json`, or an output folder of
            `export_onnx`.
        device: "auto", "cuda", "mps" or "cpu". Networks always run in fp32. An exported network
            runs on the CPU.

    Raises:
        UserError: the folder or the device cannot be used.
    """

    def __init__(self, folder: Path, device: str = "auto") -> None:
        silence_libraries()
        limit_threads()
        self.card: Card = read_card(folder)
        # The card has all fields of `Preprocessing`, under the same names.
        values = {field.name: getattr(self.card, field.name) for field in fields(Preprocessing)}
        self.preprocessing = Preprocessing(**values)
        self.estimator = load_estimator(folder, self.card)
        if self.estimator is None:
            self._load_network(folder, device)

    def _load_network(self, folder: Path, device: str) -> None:
        # TF-IDF needs neither transformers nor PEFT, which take seconds to import.
        from kinopoisk_ft.models.onnx_model import OnnxLayout
        from kinopoisk_ft.models.saving import load_network

        if self.card.kind == OnnxLayout.name:
            if device not in ("auto", "cpu"):
                raise UserError(
                    f"an exported model runs on the CPU, not on '{device}'",
                    where="--device",
                    fix="leave out --device, or use the model folder from which it was exported",
                )
            device = "cpu"
        self.precision = Precision("fp32", choose_device(device))
        module, self.tokenizer, _ = load_network(folder)
        with explain_load_errors(folder):
            self.module = module.to(self.precision.device)

    def probabilities(self, texts: Sequence[str]) -> np.ndarray:
        """Compute the class probabilities (N, classes) of N texts.

        Raises:
            UserError: a text is blank, not a string, or not valid Unicode.
        """
        # scikit-learn refuses an empty list, for which `logits` returns an empty tensor.
        if self.estimator is not None and texts:
            cut = [self.preprocessing.cut(text) for text in self._clean(texts)]
            return self.estimator.predict_proba(cut)
        # As in training, logits are fp32 and probabilities fp64.
        result: np.ndarray = torch.softmax(self.logits(texts).double(), dim=1).numpy()
        return result

    def logits(self, texts: Sequence[str]) -> Tensor:
        """Compute a network's logits (N, classes) for N texts. The result is fp32 on the CPU.

        Raises:
            UserError: a text is blank, not a string, or not valid Unicode.
        """
        from kinopoisk_ft.data.tokens import encode_ids, find_windows

        cleaned = self._clean(texts)
        if not cleaned:
            return torch.zeros((0, len(self.card.class_names)))
        objective = Classification(self.tokenizer.pad_token_id)
        examples = Examples(
            encode_ids(cleaned, self.tokenizer, self.preprocessing),
            windows=find_windows(self.tokenizer, self.preprocessing),
        )
        return predict(self.module, examples, objective, self.precision, BATCH_SIZE)

    def _clean(self, texts: Sequence[str]) -> list[str]:
        check_texts(texts, "the texts to label")
        return [self.preprocessing.clean(text) for text in texts]

    def predict(self, texts: Sequence[str]) -> pd.DataFrame:
        """Classify texts. Return the columns `label` (a class name) and `p_<class>`."""
        values = self.probabilities(texts)
        names = self.card.class_names
        labels = [names[i] for i in values.argmax(axis=1)]
        columns = {f"p_{name}": values[:, i] for i, name in enumerate(names)}
        return pd.DataFrame({"label": labels, **columns})
