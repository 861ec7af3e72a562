"""Check that TF-IDF rejects files that are damaged or do not fit each other."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from safetensors.numpy import load_file, save_file

from kinopoisk_ft.errors import UserError
from kinopoisk_ft.models.card import Card
from kinopoisk_ft.models.tfidf import Tfidf, load_estimator

CARD = Card(kind="tfidf", class_names=["Bad", "Good"], max_length=64)
Change = Callable[[dict[str, Any], dict[str, np.ndarray]], object]
# Changes of tfidf.json and of the arrays, and a part of the reason in the error.
DAMAGE: dict[str, tuple[Change, str]] = {
    "settings": (lambda saved, _: saved.pop("ngrams"), "ngrams"),
    "type": (lambda saved, _: saved.update(ngrams="2"), "ngrams"),
    "zero": (lambda saved, _: saved.update(ngrams=0), "ngrams"),
    "position": (lambda saved, _: saved["vocabulary"].update(фильм=[1]), "vocabulary"),
    "gap": (lambda saved, _: saved["vocabulary"].update(фильм=10**6), "index"),
    "classes": (lambda saved, _: saved.update(num_classes=10**9), "1000000000 classes"),
    "few classes": (lambda saved, _: saved.update(num_classes=1), "classes"),
    "array": (lambda _, arrays: arrays.pop("idf"), "idf"),
    "short": (lambda _, arrays: arrays.update(idf=arrays["idf"][1:]), "idf must have the shape"),
    "narrow": (lambda _, arrays: arrays.update(coef=arrays["coef"][:, 1:]), "coef"),
    "NaN": (lambda _, arrays: arrays.update(intercept=np.array([np.nan])), "finite"),
    "unknown class": (lambda _, arrays: arrays.update(classes=np.array([0, 2])), "numbers 0 to 1"),
}


@pytest.fixture(scope="module")
def fitted() -> Tfidf:
    texts, labels = tiny.reviews(20)
    model = Tfidf(ngrams=1, min_df=1, sublinear_tf=True, C=1.0, class_weight=None)
    return model.fit_texts(texts, np.array(labels), 2)


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_files_are_refused(name: str, fitted: Tfidf, tmp_path: Path) -> None:
    fitted.save(tmp_path)
    saved = json.loads((tmp_path / "tfidf.json").read_text())
    arrays = load_file(tmp_path / "tfidf.safetensors")
    change, reason = DAMAGE[name]
    change(saved, arrays)
    (tmp_path / "tfidf.json").write_text(json.dumps(saved))
    save_file({key: np.ascontiguousarray(a) for key, a in arrays.items()},
              tmp_path / "tfidf.safetensors")  # fmt: skip
    with pytest.raises(UserError, match=reason) as raised:
        load_estimator(tmp_path, CARD)
    assert (raised.value.where, bool(raised.value.fix)) == (str(tmp_path), True)


@pytest.mark.parametrize("file", ["tfidf.json", "tfidf.safetensors"])
def test_a_missing_or_truncated_file_is_refused(file: str, fitted: Tfidf, tmp_path: Path) -> None:
    fitted.save(tmp_path)
    (tmp_path / file).write_bytes((tmp_path / file).read_bytes()[:-9])
    with pytest.raises(UserError, match="damaged or incomplete"):
        load_estimator(tmp_path, CARD)
    (tmp_path / file).unlink()
    with pytest.raises(UserError, match="damaged or incomplete"):
        load_estimator(tmp_path, CARD)


def test_an_undamaged_folder_is_loaded(fitted: Tfidf, tmp_path: Path) -> None:
    fitted.save(tmp_path)
    assert load_estimator(tmp_path, CARD) is not None
