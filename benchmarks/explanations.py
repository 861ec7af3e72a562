"""Delete the words that an explanation calls important, and random words for comparison.

    python benchmarks/explanations.py outputs/run kinopoisk.jsonl.gz

The five words with the highest scores for the answer are deleted from a review, then five random
ones. An explanation is right if the first deletion lowers the logit difference more.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from common import allocator
from common.report import Section, command_line, publish

from kinopoisk_ft.data.tables import read_table
from kinopoisk_ft.serving.attributions import Word, explain
from kinopoisk_ft.serving.predictor import Predictor

DELETED = 5


def delete(words: list[Word], chosen: Collection[int]) -> str:
    """Return the text without the chosen words."""
    return " ".join(word.text for i, word in enumerate(words) if i not in chosen)


def measure(
    predictor: Predictor, text: str, steps: int, rng: np.random.Generator
) -> dict[str, Any]:
    """Return how much the logit difference falls if the top words or random words are deleted."""
    found = explain(predictor, text, steps)
    names = predictor.card.class_names
    label, other = names.index(found.label), names.index(found.other)
    order = np.argsort([-word.score for word in found.words], kind="stable")
    places = (order[:DELETED].tolist(), rng.permutation(len(order))[:DELETED].tolist())
    texts = [delete(found.words, ()), *(delete(found.words, chosen) for chosen in places)]
    logits = predictor.logits(texts)
    whole, highest, random = (logits[:, label] - logits[:, other]).tolist()
    words = sum(word.score for word in found.words)
    return {
        "highest": whole - highest,
        "random": whole - random,
        "error of the sum": abs(words - (found.difference - found.baseline))
        / max(1e-6, abs(found.difference - found.baseline)),
    }


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("run", type=Path, nargs="?", help="output_dir of a run with data=kinopoisk")
    parser.add_argument("data", type=Path, nargs="?", help="the reviews of this run")
    parser.add_argument("--reviews", type=int, default=100)
    parser.add_argument("--steps", type=int, default=20)
    args = parser.parse_args()
    if not args.data:
        print("skipped: give the output_dir of a run and the file of its reviews")
        return
    rng = np.random.default_rng(0)
    rows = pd.read_parquet(args.run / "predictions.parquet")["row"].to_numpy()
    chosen = rng.permutation(rows)[: 5 if args.quick else args.reviews]
    texts = read_table(args.data).frame["content"].iloc[chosen]
    predictor = Predictor(args.run / "model", "cpu")
    found = pd.DataFrame([measure(predictor, text, args.steps, rng) for text in texts])
    wins = int((found["highest"] > found["random"]).sum())
    row = {
        "reviews": len(found),
        "highest words lower it more": f"{wins / len(found):.2f}",
        "median fall, highest": f"{found['highest'].median():.2f}",
        "median fall, random": f"{found['random'].median():.2f}",
        "median error of the sum": f"{found['error of the sum'].median():.1%}",
    }
    note = f"{DELETED} words deleted from test reviews; {args.steps} steps of integration."
    sections = [Section("Deletions", note, [row])]
    publish("Explanations", sections, args, allocator.DEFAULT)


if __name__ == "__main__":
    main()
