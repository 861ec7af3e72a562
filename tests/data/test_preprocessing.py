"""Check truncation in tokens and characters, and that prediction truncates like training."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from networks import NAMES, make
from transformers import AutoTokenizer

from kinopoisk_ft.data import tokens
from kinopoisk_ft.data.preprocessing import Preprocessing, TextCoverage, split_room
from kinopoisk_ft.data.tokens import encode, tokenize
from kinopoisk_ft.data.windows import pad
from kinopoisk_ft.errors import UserError
from kinopoisk_ft.models.card import Card, read_card
from kinopoisk_ft.models.saving import make_card, save_network
from kinopoisk_ft.models.tfidf import Tfidf
from kinopoisk_ft.serving.predictor import Predictor

TEXTS = [*tiny.reviews(20)[0], "", "фильм", "[SEP] отличный [CLS] " * 30]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KINOPOISK_FT_CACHE", str(tmp_path / "cache"))


def tokenizer(kind: str) -> Any:
    return AutoTokenizer.from_pretrained({"bert": tiny.bert, "mamba": tiny.mamba}[kind]())


def test_a_quarter_and_three_of_the_paper() -> None:
    assert split_room(510, "head_tail") == (128, 382)
    assert [split_room(room, "head_tail") for room in (1, 2, 4)] == [(1, 0), (1, 1), (1, 3)]
    assert (split_room(9, "head"), split_room(9, "tail")) == ((9, 0), (0, 9))


@pytest.mark.parametrize("kind", ["bert", "mamba"])
@pytest.mark.parametrize("length", [3, 8, 17, 64])
def test_tokens_are_those_of_transformers(kind: str, length: int) -> None:
    """The library truncates at either side; head_tail combines its two results."""
    ours = tokenizer(kind)
    found = {
        way: encode(TEXTS, ours, Preprocessing(length, way))["input_ids"]
        for way in ("head", "tail", "head_tail")
    }
    options = {"truncation": True, "max_length": length, "split_special_tokens": True}
    assert found["head"] == tokenizer(kind)(TEXTS, **options)["input_ids"]
    left = tokenizer(kind)
    left.truncation_side = "left"
    assert found["tail"] == left(TEXTS, **options)["input_ids"]
    special = len(ours("")["input_ids"])
    head, tail = split_room(length - special, "head_tail")
    uncut = ours(TEXTS, split_special_tokens=True)["input_ids"]
    for mixed, whole in zip(found["head_tail"], uncut, strict=True):
        if len(whole) <= length:
            assert mixed == whole
            continue
        first = 1 if special else 0
        assert mixed == whole[: first + head] + whole[len(whole) - (special - first) - tail :]
        assert len(mixed) == length


def test_what_was_seen_is_counted() -> None:
    """Each word of these texts is a token, so the expected coverage follows from the text."""
    four = "отличный фильм прекрасная игра"
    text = " ".join([four] * 5)
    expected = {
        "head": len(four), "tail": len(four),
        # Without the space between the two ends.
        "head_tail": len(four) - 1,
    }  # fmt: skip
    for way, characters in expected.items():
        found = tokenize([text, "фильм"], tokenizer("bert"), Preprocessing(6, way))
        assert [len(ids) for ids in found.input_ids] == [6, 3]
        assert found.seen == TextCoverage(len(text) + 5, characters + 5, 21, 5)
        assert found.truncated.tolist() == [(len(text) - characters) / len(text), 0]
    shares = found.seen.metrics()
    assert shares["tokens_seen_share"] == 5 / 21
    assert shares["characters_per_token"] == (len(text) + 5) / 21
    assert TextCoverage(10, 5).metrics() == {"characters_seen_share": 0.5}


def test_characters_are_cut_before_tokens_and_counted_of_the_whole() -> None:
    text = "отличный фильм " * 10
    found = tokenize([text], tokenizer("bert"), Preprocessing(64, "head", 14))
    assert found.input_ids == tokenizer("bert")(["отличный фильм"])["input_ids"]
    assert found.seen == TextCoverage(150, 14, 20, 2)


@given(
    st.text(alphabet="абв ", max_size=40),
    st.integers(1, 45),
    st.sampled_from(["head", "tail", "head_tail"]),
)
def test_cut_texts_keep_to_their_budget(text: str, characters: int, way: str) -> None:
    cut = Preprocessing(1, way, characters).cut(text)
    assert len(cut) == min(len(text), characters)
    assert Preprocessing(1, way).cut(text) == text
    if len(text) > characters:
        head, tail = split_room(characters, way)
        assert cut[:head] == text[:head]
        assert cut.endswith(text[len(text) - max(0, tail - bool(head)) :])


def test_a_change_makes_new_files(tmp_path: Path) -> None:
    ways = [
        Preprocessing(8),
        Preprocessing(9),
        Preprocessing(8, "tail"),
        Preprocessing(8, "head", 9),
    ]
    for way in [*ways, *ways]:
        tokenize(["отличный фильм " * 9], tokenizer("bert"), way)
    assert len(list(tmp_path.rglob("*.arrow"))) == len(ways)


def cut_file(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:700])


def replace_tokens(file: Path) -> None:
    """Replace the tokens by those of another text, so that the file can still be read."""
    tokenize(["отличный фильм и другой"], tokenizer("bert"), Preprocessing(8))
    (other,) = set(file.parent.glob("*.arrow")) - {file}
    file.write_bytes(other.read_bytes())


@pytest.mark.parametrize("damage", [cut_file, replace_tokens])
def test_cached_tokens_are_read_and_damaged_ones_rebuilt(
    damage: Callable[[Path], object],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    texts = [
        f"отличный фильм {'очень ' * (i % 9)}"
        for i in range(1200)
        # The texts fill several chunks of Arrow.
    ]
    want = tokenize(texts, tokenizer("bert"), Preprocessing(8))
    monkeypatch.setattr(tokens, "encode", None)
    found = tokenize(texts, tokenizer("bert"), Preprocessing(8))
    anew = encode(texts, tokenizer("bert"), Preprocessing(8))
    assert found.input_ids == want.input_ids == anew["input_ids"]
    assert found.seen == want.seen
    np.testing.assert_array_equal(found.truncated, want.truncated)
    monkeypatch.setattr(tokens, "encode", encode)
    (file,) = tmp_path.rglob("*.arrow")
    damage(file)
    for _ in range(2):
        assert tokenize(texts, tokenizer("bert"), Preprocessing(8)).input_ids == want.input_ids
    assert caplog.text.count("is damaged, so the reviews are tokenized again") == 1


def test_a_token_cache_without_digest_is_not_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """An earlier version, or a process that was killed, did not write the digest."""
    want = tokenize(["отличный фильм"], tokenizer("bert"), Preprocessing(8))
    (file,) = tmp_path.rglob("*.arrow")
    replace_tokens(file)
    file.with_suffix(".sha256").unlink()
    again = tokenize(["отличный фильм"], tokenizer("bert"), Preprocessing(8))
    assert again.input_ids == want.input_ids
    assert not caplog.text


def test_two_processes_may_cache_the_same_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    replace, others = Path.replace, iter([lambda: tokenize(*arguments)])
    arguments = ["отличный фильм"], tokenizer("bert"), Preprocessing(8)

    def replace_last(part: Path, target: Path) -> Path:
        """Let another process write the digest between the two steps of this one."""
        for other in others:
            other()
        return replace(part, target)

    monkeypatch.setattr(Path, "replace", replace_last)
    assert tokenize(*arguments).input_ids == encode(*arguments)["input_ids"]


def test_max_length_without_room_for_text_is_refused() -> None:
    with pytest.raises(UserError, match=r"leaves no room .* take 2 tokens") as caught:
        encode(["фильм"], tokenizer("bert"), Preprocessing(2))
    assert caught.value.fix == "set data.max_length to 3 or more"


HOW = Preprocessing(12, "head_tail", 90, strip_scores=True)
REVIEWS = [
    f"\n{tiny.GOOD} {tiny.BAD} {tiny.GOOD}\n10 из 10",
    f"{tiny.BAD}. Моя оценка: 2",
    "9/10",
    tiny.GOOD,
]


@pytest.mark.parametrize("kind", ["bert", "mamba"])
def test_a_network_predicts_as_it_was_trained(kind: str, tmp_path: Path) -> None:
    _, adapter, network, tokens = make(kind)
    adapted = adapter.apply(network)
    card = make_card(network, adapted, NAMES, **dataclasses.asdict(HOW))
    save_network(network, adapted, tokens, card, tmp_path)
    assert (read_card(tmp_path).truncation, read_card(tmp_path).strip_scores) == ("head_tail", True)
    read = tokenize([HOW.clean(text) for text in REVIEWS], tokens, HOW).input_ids
    with torch.no_grad():
        logits = adapted.module.eval()(**pad(read, tokens.pad_token_id)).logits
    found = Predictor(tmp_path, "cpu").probabilities(REVIEWS)
    np.testing.assert_allclose(found, torch.softmax(logits.double(), 1).numpy(), atol=1e-5)
    assert np.isfinite(found).all()


def test_the_baseline_predicts_as_it_was_trained(tmp_path: Path) -> None:
    texts, labels = tiny.reviews(60)
    model = Tfidf(ngrams=2, min_df=2, sublinear_tf=True, C=10.0, class_weight="balanced")
    model.fit_texts([HOW.cut(text) for text in texts], np.array(labels), 2).save(tmp_path)
    Card("tfidf", list(NAMES), **dataclasses.asdict(HOW)).write(tmp_path)
    cut = [HOW.cut(HOW.clean(text)) for text in REVIEWS]
    assert max(map(len, cut)) == 90
    assert not any("10" in text for text in cut)
    found = Predictor(tmp_path).probabilities(REVIEWS)
    np.testing.assert_array_equal(found, model.predict_proba(cut))


def test_a_folder_of_an_earlier_version_reads_the_head(tmp_path: Path) -> None:
    (tmp_path / "kinopoisk_ft.json").write_text(
        '{"kind": "hf", "class_names": ["Bad", "Good"], "max_length": 64, "format": 1}'
    )
    card = read_card(tmp_path)
    assert (card.truncation, card.max_characters, card.strip_scores) == ("head", None, False)
