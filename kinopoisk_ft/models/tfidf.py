"""Classify texts with TF-IDF and logistic regression from scikit-learn, as a baseline."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from pydantic import ConfigDict, PositiveInt, TypeAdapter
from safetensors.numpy import load_file, save_file
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from kinopoisk_ft.errors import UserError
from kinopoisk_ft.models.card import Card
from kinopoisk_ft.models.network import ModelRecipe
from kinopoisk_ft.models.untrusted import explain_load_errors

# `kind` in the card of a model folder.
KIND: Literal["tfidf"] = "tfidf"
# The options that a model folder stores.
SETTINGS = ("ngrams", "min_df", "sublinear_tf", "C", "class_weight")


@dataclass(kw_only=True, eq=False)
class Tfidf(ModelRecipe):
    """TF-IDF and logistic regression (model=tfidf), saved without pickle.

    Args:
        ngrams: maximum number of words in an n-gram; all lengths from 1 are used.
        min_df: minimum number of texts that must contain an n-gram.
        C: inverse of the L2 regularization strength.
        lr, head_lr, targets: ignored; only networks use these options.
    """

    is_network = False
    ngrams: int
    min_df: int
    sublinear_tf: bool
    C: float
    class_weight: Literal["balanced"] | None
    lr: float = 0.0
    head_lr: float | None = None
    targets: dict[str, list[str] | str] | None = None

    def __post_init__(self) -> None:
        self.vectorizer = self._build_vectorizer(None)
        self.regression = LogisticRegression(
            C=self.C, class_weight=self.class_weight, max_iter=1000
        )

    def check_gradient_checkpointing(self) -> None:
        """Raise UserError, because this model has no layers."""
        raise UserError(
            "gradient checkpointing would have no effect, because TF-IDF has no layers",
            where="trainer.gradient_checkpointing",
            fix="use trainer.gradient_checkpointing=false",
        )

    def fit_texts(self, texts: Sequence[str], labels: np.ndarray, num_classes: int) -> Tfidf:
        """Fit the vectorizer and the regression on the train split.

        Raises:
            ValueError: the texts contain no words (raised by scikit-learn).
        """
        self.num_classes = num_classes
        self.regression.fit(self.vectorizer.fit_transform(texts), labels)
        return self

    def predict_proba(self, texts: Sequence[str]) -> np.ndarray:
        """Predict probabilities (N, classes); classes missing from the train split get 0."""
        probabilities = np.zeros((len(texts), self.num_classes))
        probabilities[:, self.regression.classes_.astype(int)] = self.regression.predict_proba(
            self.vectorizer.transform(texts)
        )
        return probabilities

    def class_weights(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the weights (classes, n-grams) and intercepts (classes,) of the logits.

        Classes missing from the train split have minus infinity as their intercept.
        """
        coef, intercept = self.regression.coef_, self.regression.intercept_
        if len(self.regression.classes_) == 2:
            # scikit-learn stores only the difference of the two logits.
            coef, intercept = (
                np.vstack([0 * coef, coef]),
                np.concatenate([0 * intercept, intercept]),
            )
        weights = np.zeros((self.num_classes, coef.shape[1]))
        intercepts = np.full(self.num_classes, -np.inf)
        places = self.regression.classes_.astype(int)
        weights[places], intercepts[places] = coef, intercept
        return weights, intercepts

    @property
    def parameters(self) -> int:
        """Return the number of fitted coefficients and intercepts."""
        return int(self.regression.coef_.size + self.regression.intercept_.size)

    def save(self, folder: Path) -> None:
        """Save the settings and the vocabulary as JSON, and the arrays as safetensors."""
        folder.mkdir(parents=True, exist_ok=True)
        settings = {key: getattr(self, key) for key in SETTINGS}
        settings["num_classes"] = self.num_classes
        settings["vocabulary"] = {word: int(i) for word, i in self.vectorizer.vocabulary_.items()}
        (folder / "tfidf.json").write_text(json.dumps(settings, ensure_ascii=False), "utf-8")
        arrays = {
            "idf": self.vectorizer.idf_,
            "coef": self.regression.coef_,
            "intercept": self.regression.intercept_,
            "classes": self.regression.classes_.astype(np.int64),
        }
        # safetensors writes the raw buffer and ignores strides, so arrays must be contiguous.
        save_file(
            {k: np.ascontiguousarray(v) for k, v in arrays.items()}, folder / "tfidf.safetensors"
        )

    @classmethod
    def load(cls, folder: Path) -> Tfidf:
        """Load an estimator that was saved with `save`.

        Raises:
            UserError: the files are missing or damaged, or do not fit each other.
        """
        with explain_load_errors(folder):
            saved = TypeAdapter(Saved).validate_json((folder / "tfidf.json").read_bytes())
            arrays = load_file(folder / "tfidf.safetensors")
            _check_arrays(arrays, len(saved.vocabulary), saved.num_classes)
            model = cls(**{key: getattr(saved, key) for key in SETTINGS})
            model.num_classes = saved.num_classes
            # With a vocabulary and idf weights, TfidfVectorizer can transform texts without a fit.
            model.vectorizer = model._build_vectorizer(saved.vocabulary)
            model.vectorizer.idf_ = arrays["idf"]
        # scikit-learn treats an estimator with these attributes as fitted.
        model.regression.coef_, model.regression.intercept_ = arrays["coef"], arrays["intercept"]
        model.regression.classes_ = arrays["classes"]
        return model

    def _build_vectorizer(self, vocabulary: dict[str, int] | None) -> TfidfVectorizer:
        return TfidfVectorizer(
            ngram_range=(1, self.ngrams),
            min_df=self.min_df,
            sublinear_tf=self.sublinear_tf,
            vocabulary=vocabulary,
        )


@dataclass(frozen=True)
class Saved:
    """The contents of tfidf.json: the options of `Tfidf`, the class count and the vocabulary.

    Args:
        vocabulary: {n-gram: its index in `idf` and in each row of `coef`}.
    """

    # A model folder may come from somebody else, so only these types are valid.
    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(strict=True)

    ngrams: PositiveInt
    min_df: PositiveInt
    sublinear_tf: bool
    C: float
    class_weight: Literal["balanced"] | None
    num_classes: PositiveInt
    vocabulary: dict[str, int]


def _check_arrays(arrays: Mapping[str, np.ndarray], words: int, num_classes: int) -> None:
    """Raise ValueError if the arrays do not fit the vocabulary, the classes or each other."""
    classes = arrays["classes"]
    # scikit-learn stores only the difference of two classes.
    rows = len(classes) if len(classes) > 2 else 1
    shapes = {"idf": (words,), "coef": (rows, words), "intercept": (rows,)}
    for name, shape in shapes.items():
        if arrays[name].shape != shape or not np.isfinite(arrays[name]).all():
            raise ValueError(f"{name} must have the shape {shape} and contain finite numbers")
    if len(classes) < 2 or not all(0 <= number < num_classes for number in classes.tolist()):
        raise ValueError(f"classes must be at least two of the numbers 0 to {num_classes - 1}")


def load_estimator(folder: Path, card: Card) -> Tfidf | None:
    """Load the estimator of a model folder; return None if the folder contains a network.

    Raises:
        UserError: the files are damaged, or do not fit the card.
    """
    if card.kind != KIND:
        return None
    model = Tfidf.load(folder)
    with explain_load_errors(folder):
        if model.num_classes != len(card.class_names):
            raise ValueError(f"{model.num_classes} classes, but {len(card.class_names)} names")
    return model
