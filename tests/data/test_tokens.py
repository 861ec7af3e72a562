"""Check that token ids equal those of the whole text, truncated afterwards, for any text."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tiny
from hostile import saved
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from kinopoisk_ft.data.preprocessing import Preprocessing, split_room
from kinopoisk_ft.data.tokens import batch_texts, encode, encode_ids, encode_with_spans
from kinopoisk_ft.errors import UserError
from kinopoisk_ft.models.tokenizers import END, load_tokenizer
from kinopoisk_ft.serving.predictor import Predictor
from kinopoisk_ft.serving.pyfunc import extract_texts

WORDS = [
    "кино",
    "фильм",
    "Ёлка",
    "good",
    "e\u0301",
    "😀😀",
    "...",
    "8/10",
    "\n",
    "  ",
    "\t",
    "слово,",
    "שלום",
]
MODES = ("head", "tail", "head_tail")


def unigram(with_spaces: bool) -> PreTrainedTokenizerFast:
    """Train a Unigram tokenizer; without its pre-tokenizer, tokens may contain spaces."""
    letters = sorted({letter for word in WORDS for letter in word} | {"▁", " "})
    vocab = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0), ("<pad>", 0.0)]
    vocab += [(letter, -8.0) for letter in letters]
    vocab += [("▁кино", -3.0), ("▁фильм", -3.0), ("кино фильм", -1.0), ("▁good", -2.5)]
    tokenizer = Tokenizer(models.Unigram(vocab, unk_id=0))
    if with_spaces:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>")


@pytest.fixture(params=["wordpiece", "bpe", "unigram", "unigram over spaces"])
def tokenizer(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr("kinopoisk_ft.data.tokens.MAX_BATCH_CHARACTERS", 500)
    if request.param.startswith("unigram"):
        return unigram(request.param == "unigram")
    return load_tokenizer(tiny.bert() if request.param == "wordpiece" else tiny.mamba())


def expected(text: str, tokenizer: Any, preprocessing: Preprocessing) -> list[int]:
    """Tokenize the whole text and truncate the ids afterwards."""
    ids = tokenizer(text, split_special_tokens=True, verbose=False)["input_ids"]
    bare = tokenizer(
        text, split_special_tokens=True, add_special_tokens=False, verbose=False
    )["input_ids"]  # fmt: skip
    left = (len(ids) - len(bare) + 1) // 2
    right = len(ids) - len(bare) - left
    room = preprocessing.max_length - left - right
    if len(bare) > room:
        head, tail = split_room(room, preprocessing.truncation)
        bare = bare[:head] + bare[len(bare) - tail :]
    return [*ids[:left], *bare, *ids[len(ids) - right :]]


@pytest.mark.parametrize("truncation", MODES)
def test_ids_are_those_of_the_whole_text(tokenizer: Any, truncation: str) -> None:
    preprocessing = Preprocessing(24, truncation)
    rng = random.Random(0)
    texts = [" ".join(rng.choices(WORDS, k=rng.randint(0, 400))) for _ in range(40)]
    texts += ["а" * 3000, " " * 3000, "кино фильм " * 200, "кино" + " " * 900 + "фильм"]
    assert encode_ids(texts, tokenizer, preprocessing) == [
        expected(text, tokenizer, preprocessing) for text in texts
    ]


def test_coverage_is_counted_on_the_whole_text(tokenizer: Any) -> None:
    rng = random.Random(1)
    texts = [" ".join(rng.choices(WORDS[:4], k=300)) for _ in range(10)]
    for preprocessing in (Preprocessing(24, "head"), Preprocessing(24, "tail", max_characters=700)):
        found = encode(texts, tokenizer, preprocessing)
        alone = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
        assert found["tokens"] == [len(ids) for ids in alone]
        assert found["characters"] == [len(text) for text in texts]
        assert all(0 < seen < 700 for seen in found["characters_seen"])


def test_groups_have_a_bounded_number_of_characters() -> None:
    assert list(batch_texts(["a" * 2**21, "b", "c"])) == [["a" * 2**21], ["b", "c"]]


@pytest.mark.parametrize("mark", ["[SEP]", "[PAD]", "[MASK]", "[CLS]", END])
def test_marks_in_a_review_are_text(mark: str) -> None:
    """The name of a special token in a review is ordinary text."""
    for folder in (tiny.bert(), tiny.mamba()):
        tokenizer = load_tokenizer(folder)
        preprocessing = Preprocessing(64)
        plain, marked = encode_ids(["фильм", f"фильм {mark} фильм"], tokenizer, preprocessing)
        special = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
        ours = [token for token in plain if token in special]
        assert [token for token in marked if token in special] == ours
        assert len(marked) > len(plain) + 1


PREFIXES = ("query: ", "Instruct: оценить\nQuery: ")


@pytest.mark.parametrize("prefix", PREFIXES)
def test_every_truncation_keeps_the_prefix(tokenizer: Any, prefix: str) -> None:
    """The oracle truncates the ids of prefix and text, and never the ids of the prefix."""
    rng = random.Random(4)
    texts = ["фильм " + " ".join(rng.choices(WORDS[:4], k=n)) for n in (0, 3, 300)]
    bare = {"add_special_tokens": False, "split_special_tokens": True, "verbose": False}
    # The last space belongs to the text.
    size = len(tokenizer(prefix.rstrip(), **bare)["input_ids"])
    marks = tokenizer("", add_special_tokens=True)["input_ids"]
    left, right = marks[: (len(marks) + 1) // 2], marks[(len(marks) + 1) // 2 :]
    for truncation in MODES:
        preprocessing = Preprocessing(len(marks) + size + 12, truncation, text_prefix=prefix)
        found = encode(texts, tokenizer, preprocessing)
        for text, ids, seen in zip(
            texts, found["input_ids"], found["characters_seen"], strict=True
        ):
            inner = tokenizer(prefix + text, **bare)["input_ids"]
            kept = inner[size:]
            if len(kept) > 12:
                head, tail = split_room(12, truncation)
                kept = kept[:head] + kept[len(kept) - tail :]
            assert ids == [*left, *inner[:size], *kept, *right]
            assert seen == len(text) if len(inner) - size <= 12 else 0 < seen <= len(text)
        assert found["characters_seen"][-1] < len(texts[-1])
        assert found["tokens"] == [
            len(tokenizer(prefix + text, **bare)["input_ids"]) - size for text in texts
        ]


def test_spans_of_a_text_behind_a_prefix(tokenizer: Any) -> None:
    text = "фильм хорош " * 20
    preprocessing = Preprocessing(40, "tail", text_prefix="query: ")
    ids, spans = encode_with_spans(text, tokenizer, preprocessing)
    assert ids == encode_ids([text], tokenizer, preprocessing)[0]
    size = len(tokenizer("query:", split_special_tokens=True)["input_ids"])
    first = next(place for place, span in enumerate(spans) if span)
    # Without the special token at the end, one token less.
    assert first in (size, size - 1)
    covered = {i for span in spans if span for i in range(*span)}
    letters = {i for i in range(min(covered), len(text)) if text[i] != " "}
    assert letters <= covered <= set(range(len(text)))


ODD = {
    "spaces between": "фильм" + " " * 40_000 + "хорош", "one word": "а" * 40_000,
    "emoji": "😀👨‍👩‍👧🇷🇺" * 300, "right to left": "סרט מצוין ומרגש מאוד " * 300,
    "marks": "е" + "\u0301" * 2000, "controls": "\x00\x07\u202e\ufeff" * 500 + "фильм",
    "long": tiny.GOOD * 600, "one letter": "и", "special": "[SEP][PAD]<|endoftext|>" * 300,
}  # fmt: skip


@pytest.mark.parametrize("kind", ["bert", "pooled", "mamba"])
def test_a_prediction_is_independent_of_its_neighbours(tmp_path: Path, kind: str) -> None:
    predictor = Predictor(saved(kind, "none", tmp_path), "cpu")
    texts = [tiny.GOOD, *ODD.values(), tiny.BAD]
    together = predictor.probabilities(texts)
    assert np.isfinite(together).all()
    np.testing.assert_allclose(together.sum(axis=1), 1)
    alone = np.concatenate([predictor.probabilities([text]) for text in texts])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    back = predictor.probabilities(texts[::-1])[::-1]
    np.testing.assert_allclose(together, back, atol=1e-5)


def test_values_that_are_not_texts_are_refused(tmp_path: Path) -> None:
    predictor = Predictor(saved("bert", "none", tmp_path), "cpu")
    for wrong in ("", " \n\t", "\ud83d", None, float("nan"), 5, ["а"]):
        with pytest.raises(UserError, match="the first is row 2"):
            predictor.predict(extract_texts([tiny.GOOD, wrong]))
    # A request to MLflow's server may contain no record.
    with pytest.raises(UserError, match="there is no column 'text'"):
        extract_texts(pd.DataFrame())


def test_ids_of_a_real_tokenizer(shared: Path) -> None:
    """The tokenizer of multilingual-e5 (SentencePiece) normalizes punctuation and spaces."""
    tokenizer = load_tokenizer(str(shared / "models" / "e5-small-ru"))
    rng = random.Random(2)
    texts = [" ".join(rng.choices(WORDS, k=3_000)) for _ in range(2)]
    for truncation in MODES:
        preprocessing = Preprocessing(128, truncation)
        assert encode_ids(texts, tokenizer, preprocessing) == [
            expected(text, tokenizer, preprocessing) for text in texts
        ]


def test_a_prefix_with_a_real_tokenizer(shared: Path) -> None:
    """e5 was trained on "query: text", so the ids are those of the joined text."""
    tokenizer = load_tokenizer(str(shared / "models" / "e5-small-ru"))
    found = encode_ids(["Фильм хорош"], tokenizer, Preprocessing(64, text_prefix="query: "))
    assert found == tokenizer(["query: Фильм хорош"])["input_ids"]
    text = "слово " * 500
    short = encode_ids([text], tokenizer, Preprocessing(64, "tail", text_prefix="query: "))[0]
    assert len(short) == 64
    assert tokenizer.decode(short).startswith("<s> query: слово")
