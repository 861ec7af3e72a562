"""Implement `kinopoisk-ft explain`, which shows the words that decided a prediction."""

from __future__ import annotations

import argparse
import sys
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from kinopoisk_ft.console import handle_errors
from kinopoisk_ft.files import check_writable, prepare_caches, write_atomically
from kinopoisk_ft.text import replace_controls, to_one_line

if TYPE_CHECKING:
    from kinopoisk_ft.serving.attributions import Explanation

DESCRIPTION = """\
Show which words made a model prefer its answer to the second most probable class.

For a network, the scores of the words are integrated gradients (extra 'explain'). For TF-IDF, they
are the terms of the logit. Their sum shows how much the words change the difference of both logits.
"""
# Number of words in the printed table.
MOST_WORDS = 12
# ANSI codes: 256 colours, from a weak to a strong shade, for words for and against the prediction.
FOR, AGAINST, RESET = (194, 157, 120), (224, 217, 210), "\x1b[0m"
PAGE = """<!DOCTYPE html>
<html>
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ font: 1rem/1.7 system-ui, sans-serif; max-width: 48rem; margin: 2rem auto; }}
span {{ border-radius: .2rem; }}
</style>
</head>
<body>
<h1>{title}</h1>
<p>{summary}</p>
<p>{text}</p>
</body>
</html>
"""


@handle_errors
def main(argv: list[str] | None = None) -> None:
    """Explain the prediction for one review."""
    parser = argparse.ArgumentParser(
        prog="kinopoisk-ft explain", description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("model", help="output_dir of a run, model folder, or run id")
    parser.add_argument("text", help="the review to explain")
    parser.add_argument("--html", type=Path, metavar="FILE", help="page to write")
    parser.add_argument(
        "--uri", help="MLflow store (default: MLFLOW_TRACKING_URI, or else ./mlflow.db)"
    )
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda", "mps"])
    args = parser.parse_args(argv)
    # Checked first, because the explanation of a network can take a minute.
    if args.html:
        check_writable(args.html, "--html")
    prepare_caches()
    from kinopoisk_ft.serving.attributions import explain
    from kinopoisk_ft.serving.locate import find_model_folder
    from kinopoisk_ft.serving.predictor import Predictor

    predictor = Predictor(find_model_folder(args.model, args.uri), args.device)
    found = explain(predictor, args.text)
    print(format_explanation(found, colours=sys.stdout.isatty()))
    if args.html:
        write_atomically(args.html, as_page(found))
        print(f"written to {args.html}")


def _summarize(found: Explanation) -> str:
    words = found.difference - found.baseline
    label, other = to_one_line(found.label), to_one_line(found.other)
    return (
        f"{label} (probability {found.probability:.4f}). "
        f"Logit of {label} minus logit of {other}: {found.difference:+.3f}, "
        f"of which {words:+.3f} from the words and {found.baseline:+.3f} without them."
    )


def format_explanation(found: Explanation, colours: bool) -> str:
    """Return the summary and the words with the largest scores.

    If `colours` is true, the whole text follows, with shaded words. For TF-IDF, the text is left
    out, because the scores belong to n-grams, and these are not in the order of the text.
    """
    largest = sorted(found.words, key=lambda word: -abs(word.score))[:MOST_WORDS]
    shown = (f"  {word.score:+8.3f}  {replace_controls(word.text)}" for word in largest)
    lines = [_summarize(found), *shown]
    if colours and found.in_order:
        from kinopoisk_ft.serving.attributions import scale_scores

        levels = scale_scores(found.words)
        shaded = (_shade(word.text, level) for word, level in zip(found.words, levels, strict=True))
        lines += ["", " ".join(shaded)]
    return "\n".join(lines)


def _shade(text: str, level: float) -> str:
    text = replace_controls(text)
    shades = FOR if level > 0 else AGAINST
    # Scores of up to a third of the largest score have the weakest shade.
    strength = min(len(shades) - 1, int(abs(level) * len(shades)))
    if abs(level) < 0.05:
        return text
    # 30 selects black text, and 48;5;N selects background N of the palette of 256 colours.
    return f"\x1b[30;48;5;{shades[strength]}m{text}{RESET}"


def as_page(found: Explanation) -> str:
    """Return an HTML page; words for the predicted class are green, words against it are red."""
    from kinopoisk_ft.serving.attributions import shade_html

    # `shade_html` escapes the words of the review itself.
    summary = escape(_summarize(found))
    return PAGE.format(
        title=escape(to_one_line(found.label)), summary=summary, text=shade_html(found)
    )
