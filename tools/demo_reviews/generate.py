"""Write the bundled data set: invented reviews in Russian.

    python -m tools.demo_reviews.generate [--reviews 4000] [--seed 0] [--output FILE]

Without options it writes kinopoisk_ft/data/demo_reviews.jsonl.gz with the same content again.
"""

from __future__ import annotations

import argparse
import gzip
import json
from datetime import date, timedelta
from pathlib import Path

import pandas as pd

from kinopoisk_ft.data.demo import FILE
from kinopoisk_ft.data.recipe import GRADES
from tools.demo_reviews.films import AUTHORS, FILMS, Film
from tools.demo_reviews.grammar import Dice
from tools.demo_reviews.phrases import TITLES
from tools.demo_reviews.writer import Writer

SHARES = (0.23, 0.15, 0.62)  # of GRADES: most reviews praise, as on Kinopoisk
# How far the share of Good of the best and the worst film is from the mean: films leak, mildly.
FILM_BIAS = 0.16
GRADES10 = ((1, 2, 3, 4), (5, 6), (7, 8, 9, 10))
# Evenly spaced quantiles of the number of words: near to log-normal, median 90, sigma 0.6.
WORDS = (20, 35, 47, 57, 67, 78, 90, 104, 121, 143, 172, 225, 420)
LAST_SENTENCE = 6  # words, on average by which the last sentence goes beyond the wanted length
# Opinions are dealt four at a time. Of each grade: how many of the four may praise, with weights.
HANDS = (((0, 1), (7, 3)), ((1, 2, 3), (1, 8, 1)), ((3, 4), (3, 7)))
# Share of sentences with an opinion before and after the first words that a short model reads.
OPINIONS = (0.85, 0.4)
FIRST_WORDS = 90
OPENING, CLOSING = 0.3, 0.4  # how often a review starts and ends with its overall judgement


def generate(reviews: int, seed: int) -> pd.DataFrame:
    """Write reviews: columns text, label, film, author, date, title, grade10, row.

    The same seed gives the same bytes on every platform, and the first n reviews do not depend on
    how many follow.
    """
    dice = Dice(seed)
    biases = [FILM_BIAS * (2 * i / (len(FILMS) - 1) - 1) for i in range(len(FILMS))]
    dice.shuffle(biases)
    bias = {film.title: shift for film, shift in zip(FILMS, biases, strict=True)}
    seen: set[str] = set()
    rows: list[dict[str, object]] = []
    while len(rows) < reviews:
        film = dice.pick(FILMS)
        text, columns = _review(dice, film, bias[film.title])
        if text not in seen:
            seen.add(text)
            rows.append({"text": text, **columns, "row": len(rows)})
    return pd.DataFrame(rows)


def _review(dice: Dice, film: Film, bias: float) -> tuple[str, dict[str, object]]:
    author, gender = dice.pick(AUTHORS)
    bad, neutral, good = SHARES
    weights = (bad - 0.6 * bias, neutral - 0.4 * bias, good + bias)
    grade = dice.weighted(range(len(GRADES)), weights)
    return _text(Writer(dice, film, gender), dice, grade), {
        "label": GRADES[grade],
        "film": film.title,
        "author": author,
        "date": (date(2006, 1, 1) + timedelta(days=dice.below(6000))).isoformat(),
        "title": dice.pick(TITLES),
        "grade10": float(dice.pick(GRADES10[grade])),
    }


def _text(writer: Writer, dice: Dice, grade: int) -> str:
    length = max(WORDS[0], dice.quantile(WORDS) - LAST_SENTENCE)
    praises = dice.weighted(*HANDS[grade])
    hand: list[int] = []
    sentences: list[str] = []
    words = 0
    if dice.chance(OPENING):
        sentences.append(writer.conclusion(grade))
    while words < length:
        if dice.chance(OPINIONS[words > FIRST_WORDS]):
            if not hand:
                hand = [1] * praises + [0] * (4 - praises)
                dice.shuffle(hand)
            sentences.append(writer.opinion(hand.pop()))
        else:
            sentences.append(writer.filler())
        words += len(sentences[-1].split())
    if dice.chance(CLOSING):
        sentences.append(writer.conclusion(grade))
    return " ".join(sentences)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--reviews", type=int, default=4000, help="how many (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the generator (%(default)s)")
    parser.add_argument("--output", type=Path, help="a .jsonl.gz file (the package's own)")
    args = parser.parse_args()
    rows = generate(args.reviews, args.seed).to_dict("records")
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    # Without a time in its header the file has the same bytes each time.
    (args.output or FILE).write_bytes(gzip.compress(lines.encode(), 9, mtime=0))


if __name__ == "__main__":
    main()
