"""Generate the bundled data set of invented reviews in Russian.

    python -m tools.demo_reviews.generate [--reviews 4000] [--seed 0] [--output FILE]

Without options, write kinopoisk_ft/data/demo_reviews.jsonl.gz again with the same content.
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
from tools.demo_reviews.grammar import PortableRandom
from tools.demo_reviews.phrases import TITLES
from tools.demo_reviews.writer import Writer

# Shares of the GRADES. Most reviews praise, as on Kinopoisk.
SHARES = (0.23, 0.15, 0.62)
# Each film's share of Good differs from the mean by at most this, so that the film reveals a little
# about the label, as in real data.
FILM_BIAS = 0.16
# The grades from 1 to 10 for each of the GRADES.
GRADES10 = ((1, 2, 3, 4), (5, 6), (7, 8, 9, 10))
# Evenly spaced quantiles of the number of words, close to log-normal (median 42, sigma 0.6). Longer
# reviews would repeat their opinion so often that their words tell it without the order.
WORDS = (14, 18, 22, 27, 32, 37, 42, 49, 57, 67, 81, 106, 200)
# The last sentence exceeds the target length by this number of words on average.
LAST_SENTENCE = 6
# Opinions are dealt in hands of four. For each grade: possible numbers of praising opinions in a
# hand, and their weights.
HANDS = (((0, 1), (7, 3)), ((1, 2, 3), (1, 8, 1)), ((3, 4), (3, 7)))
# Share of sentences with an opinion, within and after the first FIRST_WORDS words.
OPINIONS = (0.85, 0.4)
FIRST_WORDS = 42
# Share of reviews that start, and that end, with an overall judgement.
OPENING, CLOSING = 0.3, 0.4


def generate(reviews: int, seed: int) -> pd.DataFrame:
    """Generate reviews with the columns text, label, film, author, date, title, grade10, row.

    The same seed gives the same reviews on every platform, and the first n reviews do not depend on
    the total number.
    """
    rng = PortableRandom(seed)
    biases = [FILM_BIAS * (2 * i / (len(FILMS) - 1) - 1) for i in range(len(FILMS))]
    rng.shuffle(biases)
    bias = {film.title: shift for film, shift in zip(FILMS, biases, strict=True)}
    seen: set[str] = set()
    rows: list[dict[str, object]] = []
    while len(rows) < reviews:
        film = rng.pick(FILMS)
        text, columns = _write_review(rng, film, bias[film.title])
        if text not in seen:
            seen.add(text)
            rows.append({"text": text, **columns, "row": len(rows)})
    return pd.DataFrame(rows)


def _write_review(rng: PortableRandom, film: Film, bias: float) -> tuple[str, dict[str, object]]:
    author, gender = rng.pick(AUTHORS)
    bad, neutral, good = SHARES
    weights = (bad - 0.6 * bias, neutral - 0.4 * bias, good + bias)
    grade = rng.pick_weighted(range(len(GRADES)), weights)
    return _write_text(Writer(rng, film, gender), rng, grade), {
        "label": GRADES[grade],
        "film": film.title,
        "author": author,
        "date": (date(2006, 1, 1) + timedelta(days=rng.draw_integer(6000))).isoformat(),
        "title": rng.pick(TITLES),
        "grade10": float(rng.pick(GRADES10[grade])),
    }


def _write_text(writer: Writer, rng: PortableRandom, grade: int) -> str:
    length = max(WORDS[0], rng.draw_from_quantiles(WORDS) - LAST_SENTENCE)
    praises = rng.pick_weighted(*HANDS[grade])
    hand: list[int] = []
    sentences: list[str] = []
    words = 0
    if rng.flip(OPENING):
        sentences.append(writer.write_conclusion(grade))
    while words < length:
        if rng.flip(OPINIONS[words > FIRST_WORDS]):
            if not hand:
                hand = [1] * praises + [0] * (4 - praises)
                rng.shuffle(hand)
            sentences.append(writer.write_opinion(hand.pop()))
        else:
            sentences.append(writer.write_filler())
        words += len(sentences[-1].split())
    if rng.flip(CLOSING):
        sentences.append(writer.write_conclusion(grade))
    return " ".join(sentences)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--reviews", type=int, default=4000, help="number of reviews (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="random seed (%(default)s)")
    parser.add_argument("--output", type=Path, help="a .jsonl.gz file (the bundled file)")
    args = parser.parse_args()
    rows = generate(args.reviews, args.seed).to_dict("records")
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    # The header contains no time, so that the file always has the same bytes.
    (args.output or FILE).write_bytes(gzip.compress(lines.encode(), 9, mtime=0))


if __name__ == "__main__":
    main()
