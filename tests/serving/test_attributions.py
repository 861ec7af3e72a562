"""Test that attributions are integrated gradients, and that their sum is the logit difference."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from networks import NAMES
from quick import quick
from saved_networks import save
from transformers import XLMConfig, XLMForSequenceClassification

from kinopoisk_ft.commands.explain import as_page, format_explanation, main
from kinopoisk_ft.data.preprocessing import Preprocessing
from kinopoisk_ft.data.tokens import encode_ids, encode_with_spans
from kinopoisk_ft.errors import UserError
from kinopoisk_ft.models.card import Card
from kinopoisk_ft.models.tfidf import Tfidf
from kinopoisk_ft.models.tokenizers import load_tokenizer
from kinopoisk_ft.serving.attributions import Explanation, Word, _integrate, explain
from kinopoisk_ft.serving.predictor import Predictor

TEXT = f"{tiny.GOOD} {tiny.BAD}"
CASES = [
    ("bert", "none", ()),
    ("mamba", "lora", ()),
    ("pooled", "lora", ("+model.reads_windows=true", "model.window_pooling=attention")),
    ("mamba", "none", ("+model.reads_windows=true",)),
    ("mamba2", "none", ()),
    ("bert_scratch", "freeze", ()),
]


@pytest.mark.parametrize(("kind", "adapter", "more"), quick(CASES, 3))
def test_attributions_sum_to_the_logit_difference(
    kind: str, adapter: str, more: tuple[str, ...], tmp_path: Path
) -> None:
    save(kind, adapter, tmp_path, *more)
    if more:
        file = tmp_path / "kinopoisk_ft.json"
        card = json.loads(file.read_text("utf-8"))
        file.write_text(json.dumps(card | {"truncation": "windows", "max_length": 16}), "utf-8")
    predictor = Predictor(tmp_path, "cpu")
    found = explain(predictor, TEXT, steps=40)
    logits = predictor.logits([TEXT])[0]
    label = int(logits.argmax())
    assert found.label == predictor.card.class_names[label]
    assert found.difference == pytest.approx(float(logits[label] - logits[1 - label]), abs=1e-5)
    words = sum(word.score for word in found.words)
    size = max(abs(word.score) for word in found.words)
    assert words == pytest.approx(found.difference - found.baseline, abs=0.02 * size + 1e-4)
    assert [word.text for word in found.words] == TEXT.split()
    assert found.in_order


def test_the_token_embedding_may_come_after_the_positions() -> None:
    config = XLMConfig(vocab_size=30, emb_dim=8, n_layers=1, n_heads=2, max_position_embeddings=16)
    model = XLMForSequenceClassification(config).eval()
    ids = torch.tensor([[1, 5, 6, 7, 1]])
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    special = [[True, False, False, False, True]]
    scores, baseline, difference = _integrate(model, batch, special, 2, (0, 1), 40)
    empty = torch.tensor([[1, 2, 2, 2, 1]])
    with torch.no_grad():
        logits = [model(row, attention_mask=batch["attention_mask"]).logits[0]
                  for row in (ids, empty)]  # fmt: skip
    assert [difference, baseline] == pytest.approx([float(x[0] - x[1]) for x in logits], abs=1e-6)
    assert scores.sum() == pytest.approx(difference - baseline, abs=0.02 * np.abs(scores).max())


def test_a_linear_model_is_attributed_exactly(tmp_path: Path) -> None:
    """In a linear model, a word's score is the effect of that word alone."""
    texts, labels = tiny.reviews(60)
    model = Tfidf(ngrams=2, min_df=2, sublinear_tf=True, C=10.0, class_weight="balanced")
    model.fit_texts(texts, np.array(labels), 2).save(tmp_path)
    Card("tfidf", list(NAMES), 0).write(tmp_path)
    found = explain(Predictor(tmp_path), tiny.GOOD)
    (row,) = model.vectorizer.transform([tiny.GOOD]).toarray()
    assert found.label == "Good"
    assert found.difference == pytest.approx(model.regression.decision_function([row])[0])
    names = model.vectorizer.get_feature_names_out().tolist()
    for word in found.words:
        i = names.index(word.text)
        assert word.score == pytest.approx(row[i] * model.regression.coef_[0, i])
    assert len(found.words) == np.count_nonzero(row)
    assert [abs(w.score) for w in found.words] == sorted(abs(w.score) for w in found.words)[::-1]


def test_several_classes_have_the_logits_of_scikit_learn() -> None:
    texts, labels = tiny.reviews(60)
    three = np.array(labels) + (np.arange(60) % 3 == 0)
    model = Tfidf(ngrams=1, min_df=1, sublinear_tf=True, C=10.0, class_weight=None)
    model.fit_texts(texts, three, 3)
    weights, intercepts = model.class_weights()
    row = model.vectorizer.transform(texts[:5]).toarray()
    expected = model.predict_proba(texts[:5])
    logits = torch.as_tensor(row @ weights.T + intercepts)
    np.testing.assert_allclose(torch.softmax(logits, 1).numpy(), expected)


@pytest.mark.parametrize("truncation", ["head", "tail", "head_tail", "windows"])
def test_spans_are_the_places_of_the_tokens_that_the_model_reads(truncation: str) -> None:
    tokenizer = load_tokenizer(tiny.bert())
    how = Preprocessing(12, truncation, max_windows=2)
    ids, spans = encode_with_spans(TEXT, tokenizer, how)
    assert [ids] == encode_ids([TEXT], tokenizer, how)
    assert spans[0] is spans[-1] is None
    for i, span in zip(ids[1:-1], spans[1:-1], strict=True):
        assert span is not None
        token = tokenizer.convert_ids_to_tokens(i).removeprefix("##")
        assert TEXT[slice(*span)].casefold() == token or token == "[UNK]"


def test_the_command_prints_and_writes_a_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save("bert", "none", tmp_path / "model")
    page = tmp_path / "page.html"
    assert main([str(tmp_path / "model"), TEXT, "--html", str(page)]) == 0
    printed = capsys.readouterr().out
    assert "Logit of" in printed
    assert "\x1b" not in printed
    assert page.read_text("utf-8").count("<span") == len(TEXT.split())
    assert main([str(tmp_path / "absent"), TEXT]) == 1
    assert "error: " in capsys.readouterr().err


def test_markup_in_a_text_stays_text() -> None:
    words = [Word("<b>", 0.5), Word("x", -1.0), Word("y", 0.01)]
    found = Explanation(
        label="A<B", other="C", probability=0.7, difference=0.8, baseline=1.3, words=words,
        in_order=True,
    )  # fmt: skip
    page = as_page(found)
    assert "<b>" not in page
    assert "&lt;b&gt;" in page
    shaded = format_explanation(found, colours=True).splitlines()[-1]
    assert shaded == "\x1b[30;48;5;157m<b>\x1b[0m \x1b[30;48;5;210mx\x1b[0m y"
    assert "of which -0.500 from the words and +1.300 without them" in format_explanation(
        found, colours=False
    )


@pytest.mark.parametrize("in_order", [True, False])
def test_control_characters_are_replaced(in_order: bool) -> None:
    """ESC starts a command of a terminal, and U+202E reverses the text after it."""
    words = [Word("a\x1b[2J", 0.5), Word("b\u202e", -1.0)]
    found = Explanation(
        label="A\x1b[2J\nB", other="C\u202e", probability=0.7, difference=0.8, baseline=1.3,
        words=words, in_order=in_order,
    )  # fmt: skip
    plain = format_explanation(found, colours=False)
    assert "A\ufffd[2J B (probability" in plain
    for shown in (plain, format_explanation(found, colours=True), as_page(found)):
        assert "\x1b[2J" not in shown
        assert "\u202e" not in shown
        assert "a\ufffd[2J" in shown


def test_a_blank_text_is_refused(tmp_path: Path) -> None:
    save("bert", "none", tmp_path)
    with pytest.raises(UserError, match="1 of 1 texts are empty"):
        explain(Predictor(tmp_path, "cpu"), "  ")
