"""Show an explanation as HTML: words for the answer in green, words against it in red."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from kinopoisk_ft.serving.attributions import Explanation, Word

# Number of n-grams of TF-IDF, which have no order in the text.
MOST_NGRAMS = 20


def scale_scores(words: Sequence[Word]) -> list[float]:
    """Return each word's score as a fraction of the largest one, -1 to 1."""
    largest = max((abs(word.score) for word in words), default=0.0) or 1.0
    return [word.score / largest for word in words]


def shade_html(found: Explanation) -> str:
    """Return the words as HTML spans; their titles are the scores."""
    words = found.words if found.in_order else found.words[:MOST_NGRAMS]
    parts = []
    for word, level in zip(words, scale_scores(words), strict=True):
        colour = "0, 150, 90" if level > 0 else "210, 60, 40"
        style = f"background: rgba({colour}, {0.6 * abs(level):.2f})"
        parts.append(f'<span style="{style}" title="{word.score:+.3f}">{escape(word.text)}</span>')
    return " ".join(parts)
