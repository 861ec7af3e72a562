"""Test the generator of the bundled reviews: grammar, columns, difficulty, and exact bytes."""

from __future__ import annotations

import gzip
import hashlib
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pymorphy3
import pytest
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.model_selection import train_test_split

from kinopoisk_ft.data.demo import FILE
from tools.demo_reviews.films import FILMS, LAST
from tools.demo_reviews.generate import generate, main
from tools.demo_reviews.grammar import PortableRandom, inflect_adjective, inflect_surname

WORD = r"(?u)\b\w+\b"


@pytest.fixture(scope="module")
def reviews() -> pd.DataFrame:
    return generate(4000, 0)


@pytest.fixture(scope="module")
def binary(reviews: pd.DataFrame) -> pd.DataFrame:
    return reviews[reviews["label"] != "Neutral"].head(3000)


def halves(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    rows = np.arange(len(labels))
    train, test = train_test_split(rows, test_size=0.2, random_state=42, stratify=labels)
    return train, test


def weighted_f1(true: np.ndarray, predicted: np.ndarray) -> float:
    return float(f1_score(true, predicted, average="weighted"))


def tfidf_score(frame: pd.DataFrame, ngrams: int) -> float:
    texts, labels = frame["text"].to_numpy(), frame["label"].to_numpy()
    train, test = halves(labels)
    words = TfidfVectorizer(ngram_range=(1, ngrams), sublinear_tf=True, min_df=2)
    model = LogisticRegression(C=10, max_iter=500).fit(
        words.fit_transform(texts[train]), labels[train]
    )
    return weighted_f1(labels[test], model.predict(words.transform(texts[test])))


def test_same_bytes_everywhere() -> None:
    rows = generate(300, 0).itertuples(index=False)
    digest = hashlib.sha256("\n".join("|".join(map(str, row)) for row in rows).encode())
    assert digest.hexdigest() == "9bef3fef271789f71a986c29dca81c4f7655eb71504614a1de72f46b74937d08"


def test_seed_and_prefix(reviews: pd.DataFrame) -> None:
    pd.testing.assert_frame_equal(generate(200, 0), reviews.head(200))
    assert not set(generate(200, 1)["text"]) & set(reviews["text"])


def test_columns_agree(reviews: pd.DataFrame) -> None:
    expected = ["text", "label", "film", "author", "date", "title", "grade10", "row"]
    assert list(reviews.columns) == expected
    assert list(reviews["row"]) == list(range(4000))
    assert not reviews["text"].duplicated().any()
    assert reviews["date"].str.fullmatch(r"\d{4}-\d\d-\d\d").all()
    implied = pd.cut(reviews["grade10"], [0, 4, 6, 10], labels=["Bad", "Neutral", "Good"])
    assert (implied.astype(str) == reviews["label"]).all()
    assert not reviews["text"].str.contains(r"из 10|из десяти|балл|[{}]|None").any()


def test_class_shares_and_lengths(reviews: pd.DataFrame) -> None:
    shares = reviews["label"].value_counts(normalize=True)
    assert 0.58 < shares["Good"] < 0.7
    assert shares["Bad"] > 0.18
    assert shares["Neutral"] > 0.12
    lengths = reviews["text"].str.split().str.len()
    assert lengths.min() >= 14
    assert 38 < lengths.median() < 52
    assert lengths.quantile(0.9) > 85
    assert lengths.max() < 250


def test_vocabulary_is_small(reviews: pd.DataFrame) -> None:
    assert len(CountVectorizer(token_pattern=WORD).fit(reviews["text"]).vocabulary_) < 3500


def test_every_film_has_both_grades(reviews: pd.DataFrame) -> None:
    counts = reviews.groupby(["film", "label"]).size().unstack(fill_value=0)
    assert len(counts) == len(FILMS) == len({film.title for film in FILMS}) >= 60
    assert (counts[["Bad", "Good"]] > 0).all().all()
    share = counts["Good"] / counts.sum(axis=1)
    assert 0.05 < share.std() < 0.2, "films differ, mildly"


def test_no_single_word_tells(binary: pd.DataFrame) -> None:
    good = (binary["label"] == "Good").to_numpy()
    _, test = halves(good)
    found = CountVectorizer(binary=True, token_pattern=WORD).fit_transform(binary["text"])
    present = found.toarray()[test].astype(bool)
    scores = _weighted_f1(np.concatenate([present.T, ~present.T]), good[test])
    everyone = np.ones(len(test), dtype=bool)
    assert _weighted_f1(everyone[None], good[test])[0] == pytest.approx(
        weighted_f1(good[test], everyone)
    )
    assert scores.max() < 0.72


def _weighted_f1(rules: np.ndarray, good: np.ndarray) -> np.ndarray:
    """Return the weighted F1 of each row of predictions (rules, reviews)."""
    f1 = [
        2
        * (rules == side)[:, good == side].sum(axis=1)
        / ((rules == side).sum(axis=1) + (good == side).sum())
        for side in (False, True)
    ]
    return f1[0] * (1 - good.mean()) + f1[1] * good.mean()


def test_words_and_pairs_tell(binary: pd.DataFrame) -> None:
    single, pairs = tfidf_score(binary, 1), tfidf_score(binary, 2)
    assert 0.93 < pairs < 0.97
    assert pairs > single + 0.01, "negation takes two words"


@pytest.mark.slow
def test_three_classes_can_be_learnt(reviews: pd.DataFrame) -> None:
    assert tfidf_score(reviews, 2) > 0.8


@pytest.mark.parametrize(
    "phrase", [" не ", "нельзя назвать", "ничего", " но ", "скучн", "прекрасн"]
)
def test_both_grades_use_the_same_words(binary: pd.DataFrame, phrase: str) -> None:
    has = binary["text"].str.contains(phrase).groupby(binary["label"]).mean()
    assert 0.25 < has["Good"] / has["Bad"] < 4


def test_grammar_agrees() -> None:
    assert inflect_adjective("скучный", "ins", "f") == "скучной"
    assert inflect_adjective("плоский", "gen", "n") == "плоского"
    assert inflect_adjective("захватывающий", "nom", "n") == "захватывающее"
    assert inflect_adjective("искренний", "acc", "f") == "искреннюю"
    assert inflect_adjective("живой", "ins", "p") == "живыми"
    assert inflect_adjective("плохой", "nom", "p") == "плохие"
    assert inflect_surname("Орлов", "gen", "f") == "Орловой"


def test_reflexive_participles_are_inflected_inside() -> None:
    assert inflect_adjective("запоминающийся", "nom", "m") == "запоминающийся"
    assert inflect_adjective("запоминающийся", "nom", "f") == "запоминающаяся"
    assert inflect_adjective("запоминающийся", "gen", "p") == "запоминающихся"


def test_all_words_are_in_a_dictionary(reviews: pd.DataFrame) -> None:
    words = set(re.findall("[а-яё]+", " ".join(reviews["text"]).lower()))
    surnames = {
        inflect_surname(name.lower(), case, gender)
        for name in LAST for case in ("nom", "gen", "ins") for gender in "mf"
    }  # fmt: skip
    dictionary = pymorphy3.MorphAnalyzer()
    assert len(words) > 1000
    unknown = {word for word in words - surnames if not dictionary.word_is_known(word)}
    assert unknown == set()


def test_random_choices_are_fair() -> None:
    rng = PortableRandom(3)
    faces = np.bincount([rng.draw_integer(6) for _ in range(6000)], minlength=6)
    assert faces.min() > 850
    items = list(range(20))
    rng.shuffle(items)
    assert sorted(items) == list(range(20))


def test_bundled_file_is_what_the_generator_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["generate", "--output", str(tmp_path / "again.jsonl.gz")])
    main()
    again = gzip.decompress((tmp_path / "again.jsonl.gz").read_bytes())
    assert again == gzip.decompress(FILE.read_bytes())
