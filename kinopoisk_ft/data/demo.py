"""The bundled data set: invented reviews in Russian, written by a generator, that need no network.

The reviews have what makes real ones hard: negation, contrast, expectations reversed, opinions of
others, long retellings. They say nothing of how a method does on real reviews.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, timedelta

import pandas as pd

from kinopoisk_ft.data.demo_films import AUTHORS, FILMS, Film
from kinopoisk_ft.data.demo_grammar import Dice
from kinopoisk_ft.data.demo_phrases import TITLES
from kinopoisk_ft.data.demo_writer import Writer
from kinopoisk_ft.data.recipe import GRADES, DataRecipe
from kinopoisk_ft.errors import UserError

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


@dataclass(kw_only=True)
class Demo(DataRecipe):
    """Generated reviews.

    Args:
        reviews: how many to write, before Neutral is left out.
        seed: of the generator.
    """

    reviews: int
    seed: int

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.reviews < 1:
            raise UserError(
                f"reviews cannot be {self.reviews!r}",
                where="data.reviews",
                fix="give a positive number",
            )

    def read(self) -> pd.DataFrame:
        return generate(self.reviews, self.seed)


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
