"""Just enough Russian morphology for the demo reviews: agreement in gender, number and case."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TypeVar

T = TypeVar("T")

GENDERS = "mfnp"  # masculine, feminine, neuter, plural
# Endings in the order of GENDERS; vowels depend on the last letter of the stem and on the stress.
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
# What a verb or a pronoun takes to agree with its subject.
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
    def animate(self) -> bool:
        """True for plurals whose accusative is the genitive: people."""
        return self.gender == "p" and self.acc == self.gen


def noun(gender: str, forms: str) -> Noun:
    """Read `nom/gen/acc/prep`."""
    return Noun(gender, *forms.split("/"))


@cache
def adjective(word: str, case: str, gender: str) -> str:
    """Inflect an adjective given in the masculine nominative, such as `скучный` or `живой`."""
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
def surname(name: str, case: str, gender: str) -> str:
    """Inflect a surname in -ов, -ев, -ин given in the masculine nominative."""
    if gender == "f":
        return name + {"nom": "а", "gen": "ой", "ins": "ой"}[case]
    return name + {"nom": "", "gen": "а", "ins": "ым"}[case]


@cache
def agreement(subject: Noun, words: tuple[str, ...], join: str) -> dict[str, str]:
    """Return the template fields for a noun and the adjectives, joined, that agree with it."""
    column = GENDERS.index(subject.gender)
    accusative = "gen" if subject.animate else "acc"
    return {
        "noun": subject.nom,
        "noun_gen": subject.gen,
        "noun_acc": subject.acc,
        "noun_prep": subject.prep,
        "adj": join.join(adjective(word, "nom", subject.gender) for word in words),
        "adj_acc": join.join(adjective(word, accusative, subject.gender) for word in words),
        "adj_ins": join.join(adjective(word, "ins", subject.gender) for word in words),
        "any_nom": join.join(adjective(word, "nom", "n") for word in words),
        "any_gen": join.join(adjective(word, "gen", "n") for word in words),
        **{name: endings[column] for name, endings in AGREEMENT.items()},
    }


class Dice:
    """Random choices that come out the same on every platform and Python version.

    Only `random.Random.random` is documented to be reproducible, so all else is built on it, with
    no transcendental function that a C library could round differently.
    """

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed).random

    def chance(self, probability: float) -> bool:
        """True with the given probability."""
        return self._random() < probability

    def below(self, n: int) -> int:
        """Return a whole number from 0 to n - 1."""
        return int(self._random() * n)

    def pick(self, options: Sequence[T]) -> T:
        """Return one of the options, all equally likely."""
        return options[int(self._random() * len(options))]

    def weighted(self, options: Sequence[T], weights: Sequence[float]) -> T:
        """Return one of the options with probability proportional to its weight."""
        point = self._random() * sum(weights)
        for option, weight in zip(options, weights, strict=True):
            point -= weight
            if point < 0:
                return option
        return options[-1]

    def quantile(self, knots: Sequence[float]) -> float:
        """Draw from the distribution whose evenly spaced quantiles are the knots."""
        position = self._random() * (len(knots) - 1)
        left = int(position)
        return knots[left] + (position - left) * (knots[left + 1] - knots[left])

    def shuffle(self, items: list[T]) -> None:
        """Shuffle in place (Fisher and Yates)."""
        for i in range(len(items) - 1, 0, -1):
            j = self.below(i + 1)
            items[i], items[j] = items[j], items[i]
