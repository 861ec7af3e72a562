"""Inflect Russian words for the demo reviews, and draw random choices reproducibly."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TypeVar

T = TypeVar("T")

# Masculine, feminine, neuter, plural.
GENDERS = "mfnp"
# Endings in the order of GENDERS. The vowels depend on the last letter of the stem.
HARD = {
    "nom": "ый ая ое ые",
    "gen": "ого ой ого ых",
    "acc": "ый ую ое ые",
    "ins": "ым ой ым ыми",
}
VELAR = {
    "nom": "ий ая ое ие",
    "gen": "ого ой ого их",
    "acc": "ий ую ое ие",
    "ins": "им ой им ими",
}
SIBILANT = {
    "nom": "ий ая ее ие",
    "gen": "его ей его их",
    "acc": "ий ую ее ие",
    "ins": "им ей им ими",
}
SOFT = {
    "nom": "ий яя ее ие",
    "gen": "его ей его их",
    "acc": "ий юю ее ие",
    "ins": "им ей им ими",
}
# Endings by which a verb or a pronoun agrees with its subject.
AGREEMENT = {
    "past": ("", "а", "о", "и"),
    "refl": ("ся", "ась", "ось", "ись"),
    "came": ("ел", "ла", "ло", "ли"),
    "what": ("ой", "ая", "ое", "ие"),
    "it": ("ит", "ит", "ит", "ят"),
}


@dataclass(frozen=True)
class Noun:
    """A noun phrase in the four cases that the templates use."""

    gender: str
    nom: str
    gen: str
    acc: str
    prep: str

    @property
    def is_animate(self) -> bool:
        """Check for a plural of people, whose accusative equals the genitive."""
        return self.gender == "p" and self.acc == self.gen


def parse_noun(gender: str, forms: str) -> Noun:
    """Parse the forms "nominative/genitive/accusative/prepositional"."""
    return Noun(gender, *forms.split("/"))


@cache
def inflect_adjective(word: str, case: str, gender: str) -> str:
    """Inflect an adjective from its masculine nominative, such as `скучный` or `живой`."""
    if word.endswith("ся"):
        # A reflexive participle, such as `запоминающийся`.
        return inflect_adjective(word.removesuffix("ся"), case, gender) + "ся"
    stem, ending = word[:-2], word[-2:]
    if stem[-1] in "кгх":
        table = VELAR
    elif stem[-1] in "жшчщ":
        table = SIBILANT
    elif ending == "ий":
        table = SOFT
    else:
        table = HARD
    column = GENDERS.index(gender)
    if gender == "m" and case in ("nom", "acc"):
        return word
    return stem + table[case].split()[column]


@cache
def inflect_surname(name: str, case: str, gender: str) -> str:
    """Inflect a surname in -ов, -ев or -ин from its masculine nominative."""
    if gender == "f":
        return name + {"nom": "а", "gen": "ой", "ins": "ой"}[case]
    return name + {"nom": "", "gen": "а", "ins": "ым"}[case]


@cache
def inflect_fields(subject: Noun, words: tuple[str, ...], join: str) -> dict[str, str]:
    """Build the template fields for a noun and the adjectives that agree with it.

    Args:
        words: adjectives in the masculine nominative.
        join: text between the adjectives.
    """
    column = GENDERS.index(subject.gender)
    accusative = "gen" if subject.is_animate else "acc"
    return {
        "noun": subject.nom,
        "noun_gen": subject.gen,
        "noun_acc": subject.acc,
        "noun_prep": subject.prep,
        "adj": join.join(inflect_adjective(word, "nom", subject.gender) for word in words),
        "adj_acc": join.join(inflect_adjective(word, accusative, subject.gender) for word in words),
        "adj_ins": join.join(inflect_adjective(word, "ins", subject.gender) for word in words),
        "any_nom": join.join(inflect_adjective(word, "nom", "n") for word in words),
        "any_gen": join.join(inflect_adjective(word, "gen", "n") for word in words),
        **{name: endings[column] for name, endings in AGREEMENT.items()},
    }


class PortableRandom:
    """Draw random choices that are the same on every platform and Python version.

    Python documents only `random.Random.random` as reproducible, so everything else is built on it,
    without transcendental functions, which C libraries round differently.
    """

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed).random

    def flip(self, probability: float) -> bool:
        """Return True with the given probability."""
        return self._random() < probability

    def draw_integer(self, n: int) -> int:
        """Draw an integer from 0 to n - 1."""
        return int(self._random() * n)

    def pick(self, options: Sequence[T]) -> T:
        """Pick one of the options with equal probability."""
        return options[int(self._random() * len(options))]

    def pick_weighted(self, options: Sequence[T], weights: Sequence[float]) -> T:
        """Pick one of the options with a probability proportional to its weight."""
        point = self._random() * sum(weights)
        for option, weight in zip(options, weights, strict=True):
            point -= weight
            if point < 0:
                return option
        return options[-1]

    def draw_from_quantiles(self, knots: Sequence[float]) -> float:
        """Draw from the distribution whose evenly spaced quantiles are the knots."""
        position = self._random() * (len(knots) - 1)
        left = int(position)
        return knots[left] + (position - left) * (knots[left + 1] - knots[left])

    def shuffle(self, items: list[T]) -> None:
        """Shuffle a list in place by the algorithm of Fisher and Yates."""
        for i in range(len(items) - 1, 0, -1):
            j = self.draw_integer(i + 1)
            items[i], items[j] = items[j], items[i]
