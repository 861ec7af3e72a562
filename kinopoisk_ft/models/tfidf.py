"""The baseline: TF-IDF of words and word pairs, and logistic regression, by scikit-learn."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from safetensors.numpy import load_file, save_file
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from kinopoisk_ft.models.network import Fitting, ModelRecipe


class Tfidf(ModelRecipe):
    """The group `model`'s `tfidf`: the same verbs as scikit-learn, saved without pickle.

    Its parameters are the coefficients and intercepts of the logistic regression.
    """

    def __init__(
        self,
        *,
        ngrams: int,
        min_df: int,
        sublinear_tf: bool,
        C: float,
        class_weight: Literal["balanced"] | None,
        lr: float = 0.0,
        head_lr: float | None = None,
        targets: dict[str, list[str]] | None = None,
    ) -> None:
        self.ngrams, self.min_df, self.sublinear_tf, self.C = ngrams, min_df, sublinear_tf, C
        self.class_weight, self.lr, self.head_lr, self.targets = class_weight, lr, head_lr, targets
        self.vectorizer = self._vectorizer(None)
        self.regression = LogisticRegression(C=C, class_weight=class_weight, max_iter=1000)

    def fit(self, fitting: Fitting) -> Any:
        """Train on whole texts."""
        return fitting.fit_estimator(self)

    def fit_texts(self, texts: Sequence[str], labels: np.ndarray, num_classes: int) -> Tfidf:
        """Fit on the train split; a vocabulary without words falls to scikit-learn's own error."""
        self.num_classes = num_classes
        self.regression.fit(self.vectorizer.fit_transform(texts), labels)
        return self

    def predict_proba(self, texts: Sequence[str]) -> np.ndarray:
        """Return probabilities (N, classes); a class that training lacked gets zero."""
        found = self.regression.predict_proba(self.vectorizer.transform(texts))
        probabilities = np.zeros((len(texts), self.num_classes))
        probabilities[:, self.regression.classes_.astype(int)] = found
        return probabilities

    @property
    def parameters(self) -> int:
        """Return the number of fitted coefficients and intercepts."""
        return int(self.regression.coef_.size + self.regression.intercept_.size)

    def save(self, folder: Path) -> None:
        """Write settings and vocabulary as JSON, numbers as safetensors."""
        folder.mkdir(parents=True, exist_ok=True)
        settings = {
            "ngrams": self.ngrams,
            "min_df": self.min_df,
            "sublinear_tf": self.sublinear_tf,
            "C": self.C,
            "class_weight": self.class_weight,
            "num_classes": self.num_classes,
            "vocabulary": {word: int(i) for word, i in self.vectorizer.vocabulary_.items()},
        }
        (folder / "tfidf.json").write_text(json.dumps(settings, ensure_ascii=False), "utf-8")
        arrays = {
            "idf": self.vectorizer.idf_,
            "coef": self.regression.coef_,
            "intercept": self.regression.intercept_,
            "classes": self.regression.classes_.astype(np.int64),
        }
        save_file(
            {k: np.ascontiguousarray(v) for k, v in arrays.items()}, folder / "tfidf.safetensors"
        )

    @classmethod
    def load(cls, folder: Path) -> Tfidf:
        """Read what `save` wrote."""
        settings = json.loads((folder / "tfidf.json").read_text("utf-8"))
        arrays = load_file(folder / "tfidf.safetensors")
        keys = ("ngrams", "min_df", "sublinear_tf", "C", "class_weight")
        model = cls(**{key: settings[key] for key in keys})
        model.num_classes = settings["num_classes"]
        model.vectorizer = model._vectorizer(settings["vocabulary"])
        model.vectorizer.idf_ = arrays["idf"]
        model.regression.coef_, model.regression.intercept_ = arrays["coef"], arrays["intercept"]
        model.regression.classes_ = arrays["classes"]
        return model

    def _vectorizer(self, vocabulary: dict[str, int] | None) -> TfidfVectorizer:
        return TfidfVectorizer(
            ngram_range=(1, self.ngrams),
            min_df=self.min_df,
            sublinear_tf=self.sublinear_tf,
            vocabulary=vocabulary,
        )
