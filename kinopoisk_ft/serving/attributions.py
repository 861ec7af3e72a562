"""Attribute a prediction to the words of the text.

For networks, the attributions are integrated gradients with respect to the token embeddings
(Sundararajan et al., 2017, https://arxiv.org/abs/1703.01365). For TF-IDF, they are the terms of the
logit.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from html import escape

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from kinopoisk_ft.data.tokens import encode_with_spans, find_windows
from kinopoisk_ft.errors import UserError, import_extra
from kinopoisk_ft.models.onnx_model import OnnxLayout
from kinopoisk_ft.models.tfidf import Tfidf
from kinopoisk_ft.serving.predictor import Predictor, check_texts
from kinopoisk_ft.text import replace_controls
from kinopoisk_ft.training.batching import Examples

# Number of points at which the gradients are computed, and number of points per batch. With 100
# points, the attributions of the tested models sum to the logit difference within 1%.
STEPS, BATCH_SIZE = 100, 10
# Number of n-grams of TF-IDF that are shown as HTML. They have no order in the text.
MOST_NGRAMS = 20
WORD = re.compile(r"\S+")


@dataclass(frozen=True)
class Word:
    """A word or n-gram. The score is its contribution to `Explanation.difference`."""

    text: str
    score: float


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """Why a model prefers one class to another.

    Args:
        label: the predicted class.
        other: the second most probable class.
        probability: probability of `label`.
        difference: logit of `label` minus logit of `other`.
        baseline: the same logit difference for a text without words. `difference` is approximately
            `baseline` plus the scores of all words.
        words: all words of the text in order, or the n-grams of TF-IDF, largest scores first.
        in_order: whether `words` are in the order of the text.
    """

    label: str
    other: str
    probability: float
    difference: float
    baseline: float
    words: list[Word]
    in_order: bool


def explain(predictor: Predictor, text: str, steps: int = STEPS) -> Explanation:
    """Explain the prediction for one text.

    Raises:
        UserError: the text is blank or not valid Unicode, the model is exported, or the package
            captum is missing.
    """
    check_texts([text], "the text to explain")
    (probabilities,) = predictor.probabilities([text])
    # The model does not read the characters beyond `max_characters`, so they get no scores.
    text = predictor.preprocessing.cut(predictor.preprocessing.clean(text))
    # A stable sort selects the same label as argmax if probabilities are equal.
    label, other = np.argsort(-probabilities, kind="stable")[:2].tolist()
    if predictor.estimator is not None:
        words, baseline = _explain_tfidf(predictor.estimator, text, label, other)
        difference = baseline + sum(word.score for word in words)
    elif predictor.card.kind == OnnxLayout.name:
        raise UserError(
            "an exported model cannot be explained, because this needs gradients",
            fix="explain the model folder from which it was exported",
        )
    else:
        words, baseline, difference = _explain_network(predictor, text, label, other, steps)
    names = predictor.card.class_names
    return Explanation(
        label=names[label], other=names[other], probability=float(probabilities[label]),
        difference=difference, baseline=baseline, words=words,
        in_order=predictor.estimator is None,
    )  # fmt: skip


def _explain_tfidf(model: Tfidf, text: str, label: int, other: int) -> tuple[list[Word], float]:
    weights, intercepts = model.class_weights()
    row = model.vectorizer.transform([text])
    names = model.vectorizer.get_feature_names_out()
    # The row is sparse, so only n-grams in the text get a score.
    scores = row.data * (weights[label] - weights[other])[row.indices]
    order = np.argsort(-np.abs(scores), kind="stable")
    words = [Word(str(names[row.indices[i]]), float(scores[i])) for i in order]
    return words, float(intercepts[label] - intercepts[other])


def _explain_network(
    predictor: Predictor, text: str, label: int, other: int, steps: int
) -> tuple[list[Word], float, float]:
    tokenizer, module = predictor.tokenizer, predictor.module
    ids, spans = encode_with_spans(text, tokenizer, predictor.preprocessing)
    windows = find_windows(tokenizer, predictor.preprocessing)
    device = next(module.parameters()).device
    # Ids and mask are (1, length), or (1, windows, length).
    batch = Examples([ids], None, windows).pad([0], tokenizer.pad_token_id)
    batch = {key: value.to(device) for key, value in batch.items()}
    special = [span is None for span in spans]
    # Divide the positions in `ids` into the same windows as the ids.
    places = [list(range(len(ids)))] if windows is None else windows.cut(range(len(ids)))
    scores, baseline, difference = _integrate(
        module, batch, [[special[i] for i in window] for window in places],
        tokenizer.pad_token_id, (label, other), steps,
    )  # fmt: skip
    by_token = np.zeros(len(ids))
    # A token in two windows gets the sum of both attributions.
    for window, row in zip(places, scores, strict=True):
        np.add.at(by_token, window, row[: len(window)])
    return list(_join_words(text, spans, by_token)), baseline, difference


def _integrate(
    module: nn.Module,
    batch: dict[str, Tensor],
    special: list[list[bool]],
    pad_id: int,
    classes: tuple[int, int],
    steps: int,
) -> tuple[np.ndarray, float, float]:
    """Attribute the logit of `classes[0]` minus the logit of `classes[1]` to the tokens.

    Args:
        special: for each token of each window, whether it is a special token or prefix token.

    Returns:
        The attributions (windows, length), the logit difference for the baseline, and the logit
        difference for the text.
    """
    integrated_gradients = import_extra("captum.attr", "explain").IntegratedGradients
    embedding = _find_token_embedding(module)
    ids, mask = batch["input_ids"], batch["attention_mask"]
    # True marks special tokens, which are the same in the text and in the baseline.
    kept = torch.zeros_like(ids, dtype=torch.bool)
    rows = kept.view(-1, kept.shape[-1])
    for row, flags in zip(rows, special, strict=True):
        row[: len(flags)] = torch.tensor(flags, device=row.device)

    def compare(embedded: Tensor) -> Tensor:
        count = len(embedded)
        # For each point of the path: (windows, length, d_model), without empty windows.
        flat = embedded.flatten(0, -3)
        # The value that a hook returns replaces the output of the module.
        hook = embedding.register_forward_hook(lambda *_: flat)
        try:
            expanded = (value.expand(count, *value.shape[1:]) for value in (ids, mask))
            inputs = dict(zip(("input_ids", "attention_mask"), expanded, strict=True))
            logits: Tensor = module(**inputs).logits
        finally:
            hook.remove()
        return logits[:, classes[0]] - logits[:, classes[1]]

    with torch.no_grad():
        # The baseline is a text of padding tokens between the special tokens.
        text, empty = embedding(ids), embedding(torch.where(kept, ids, pad_id))
        difference, baseline = float(compare(text)), float(compare(empty))
    # For captum, the size of a batch is the number of points times the number of rows of `text`.
    found = integrated_gradients(compare).attribute(
        text, baselines=empty, n_steps=steps, internal_batch_size=BATCH_SIZE * text.shape[0]
    )
    # The score of a token is the sum over d_model. The result is (windows, length).
    scores: np.ndarray = found.sum(-1).reshape(-1, ids.shape[-1]).detach().cpu().double().numpy()
    return scores, baseline, difference


def _find_token_embedding(module: nn.Module) -> nn.Module:
    for part in module.modules():
        if isinstance(part, PreTrainedModel):
            # Some classes of this project and of users do not implement this method.
            with suppress(NotImplementedError):
                return part.get_input_embeddings()
    # In this project's own networks, the first embedding is the token embedding.
    return next(part for part in module.modules() if isinstance(part, nn.Embedding))


def _join_words(
    text: str, spans: list[tuple[int, int] | None], scores: np.ndarray
) -> Iterator[Word]:
    """Yield the words of a text; the score of a word is the sum of its tokens' scores.

    Special tokens and prefix tokens have the span None and belong to no word. Their scores are 0,
    because the baseline contains the same tokens.
    """
    words = [(match.start(), match.end()) for match in WORD.finditer(text)]
    sums, last = np.zeros(len(words)), 0
    for span, score in zip(spans, scores, strict=True):
        if span is not None and words:
            # Spans are in ascending order. A token of white space counts for the next word.
            while last + 1 < len(words) and words[last][1] <= span[0]:
                last += 1
            sums[last] += score
    for (start, end), score in zip(words, sums.tolist(), strict=True):
        yield Word(text[start:end], score)


def scale_scores(words: Sequence[Word]) -> list[float]:
    """Divide the score of each word by the largest absolute score; the results are from -1 to 1."""
    # This avoids a division by 0 if all scores are 0.
    largest = max((abs(word.score) for word in words), default=0.0) or 1.0
    return [word.score / largest for word in words]


def shade_html(found: Explanation) -> str:
    """Return the words as HTML; words for the predicted class are green, words against it are red.

    The `title` attribute of each word contains its score.
    """
    words = found.words if found.in_order else found.words[:MOST_NGRAMS]
    parts = []
    for word, level in zip(words, scale_scores(words), strict=True):
        colour = "0, 150, 90" if level > 0 else "210, 60, 40"
        style = f"background: rgba({colour}, {0.6 * abs(level):.2f})"
        text = escape(replace_controls(word.text))
        parts.append(f'<span style="{style}" title="{word.score:+.3f}">{text}</span>')
    return " ".join(parts)
