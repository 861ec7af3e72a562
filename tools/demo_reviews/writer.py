"""Sentences of the demo reviews: opinions of a given polarity, and filler that has none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar, cast

from tools.demo_reviews import phrases
from tools.demo_reviews.films import FACTS, VIEWINGS, Film
from tools.demo_reviews.grammar import Dice, Noun, adjective, agreement
from tools.demo_reviews.plots import ARRIVALS, EVENTS, HEROES, RETELLINGS, TRAITS
from tools.demo_reviews.words import ADVERBS, ASPECTS, FILM, SUBSTANCE, VERBS

T = TypeVar("T")

# How often a judgement is put the other way round: the word of the other polarity, negated.
NEGATION = 0.08
PAIRED = 0.6  # how often two adjectives of one polarity stand together
FORMS = (65, 15, 10, 10)  # weights of a plain opinion, two that agree, a contrast, an expectation
CLAUSES = (55, 14, 14, 8, 9)  # weights of quality, effect, substance, feeling, reaction
# How often the speaker, or somebody quoted, expected the contrary.
WRONG_EXPECTATION = 0.6
AGREES = {
    "m": {"my": "", "my_refl": "ся", "my_err": "ся", "my_agree": "ен", "my_went": "ёл"},
    "f": {"my": "а", "my_refl": "ась", "my_err": "лась", "my_agree": "на", "my_went": "ла"},
}


class Writer:
    """Writes sentences on one film in the voice of one author. Polarity: 0 blames, 1 praises."""

    def __init__(self, dice: Dice, film: Film, gender: str) -> None:
        self.dice = dice
        self.film = film
        self.me = AGREES[gender]
        self._decks: dict[object, list[object]] = {}
        self._heroes = self._dealt(HEROES), self._dealt(HEROES)

    def opinion(self, polarity: int) -> str:
        """Return a sentence that speaks for the polarity, all things considered."""
        form = self.dice.weighted(
            (self._plain, self._pair, self._contrast, self._expectation), FORMS
        )
        return sentence(form(polarity))

    def conclusion(self, grade: int) -> str:
        """Return the overall judgement: 0 Bad, 1 Neutral, 2 Good."""
        return sentence(self.dice.pick(phrases.CONCLUSIONS[grade]).format(**self.me))

    def filler(self) -> str:
        """Return a sentence on the film, its story or the visit to the cinema."""
        form = self.dice.weighted((self._fact, self._viewing, self._retelling), (25, 25, 50))
        return sentence(form())

    def _dealt(self, options: Sequence[T]) -> T:
        """Return an option that this review has not had yet, as long as there is one."""
        deck = self._decks.setdefault(options, [])
        if not deck:
            deck.extend(options)
            self.dice.shuffle(deck)
        return cast(T, deck.pop())

    def _plain(self, polarity: int) -> str:
        aside = self.dice.pick(phrases.ASIDES) if self.dice.chance(0.2) else ""
        return aside + self._clause(polarity)

    def _pair(self, polarity: int) -> str:
        template = self.dice.pick(phrases.PAIRS)
        return template.format(clause=self._clause(polarity), also=self._clause(polarity))

    def _contrast(self, polarity: int) -> str:
        template = self.dice.pick(phrases.CONTRASTS)
        return template.format(against=self._clause(1 - polarity), clause=self._clause(polarity))

    def _expectation(self, polarity: int) -> str:
        wrong = self.dice.chance(WRONG_EXPECTATION)
        template = self.dice.pick(phrases.EXPECTED_WRONGLY if wrong else phrases.EXPECTED_RIGHTLY)
        subject = self.dice.pick(FILM.nouns)
        word = self.dice.pick(FILM.adjectives[1 - polarity if wrong else polarity])
        fields = agreement(subject, (word,), "")
        return template.format(clause=self._clause(polarity), **fields, **self.me)

    def _clause(self, polarity: int) -> str:
        form = self.dice.weighted(
            (self._quality, self._effect, self._substance, self._feeling, self._reaction),
            CLAUSES,
        )
        return form(polarity, self.dice.chance(NEGATION))

    def _subject(self) -> tuple[Noun, tuple[tuple[str, ...], tuple[str, ...]]]:
        aspect = self._dealt(ASPECTS)
        return self.dice.pick(aspect.nouns), aspect.adjectives

    def _quality(self, polarity: int, negated: bool) -> str:
        subject, adjectives = self._subject()
        options = adjectives[polarity ^ negated]
        words = [self.dice.pick(options)]
        if self.dice.chance(PAIRED):
            words.append(self.dice.pick([word for word in options if word != words[0]]))
        fields = agreement(subject, tuple(words), " или " if negated else " и ")
        template = self.dice.pick(phrases.NEGATED if negated else phrases.AFFIRMED)
        return template.format(**fields, **self.me)

    def _effect(self, polarity: int, negated: bool) -> str:
        subject, _ = self._subject()
        verb = self.dice.pick(VERBS[polarity ^ negated])
        template = self.dice.pick(phrases.VERB_NEGATED if negated else phrases.VERB_AFFIRMED)
        return template.format(verb=verb, **agreement(subject, (), ""))

    def _substance(self, polarity: int, negated: bool) -> str:
        subject, _ = self._subject()
        stuff = self.dice.pick(SUBSTANCE[polarity ^ negated])
        template = self.dice.pick(phrases.LACKING if negated else phrases.PLENTY)
        return template.format(stuff=stuff, **agreement(subject, (), ""))

    def _feeling(self, polarity: int, negated: bool) -> str:
        adverb = self.dice.pick(ADVERBS[polarity ^ negated])
        template = self.dice.pick(phrases.ADVERB_NEGATED if negated else phrases.ADVERB_AFFIRMED)
        return template.format(adverb=adverb)

    def _reaction(self, polarity: int, negated: bool) -> str:
        return self._dealt(phrases.REACTIONS[polarity])

    def _fact(self) -> str:
        film = self.film
        actor = self.dice.pick(film.actors)
        other = self.dice.pick([person for person in film.actors if person is not actor])
        return self._dealt(FACTS).format(
            title=film.title,
            genre=film.genre,
            year=film.year,
            director=film.director.name(),
            director_gen=film.director.name("gen"),
            director_past="а" if film.director.gender == "f" else "",
            actor=actor.name(),
            actor_past="а" if actor.gender == "f" else "",
            other=other.name(),
            other_past="а" if other.gender == "f" else "",
            **self.me,
        )

    def _viewing(self) -> str:
        return self._dealt(VIEWINGS).format(**self.me)

    def _retelling(self) -> str:
        return self._dealt(RETELLINGS).format(
            arrival=self._dealt(ARRIVALS),
            event=self._dealt(EVENTS),
            second_event=self._dealt(EVENTS),
            **self._hero(0, "hero", "trait"),
            **self._hero(1, "second", "second_trait"),
        )

    def _hero(self, who: int, name: str, trait: str) -> dict[str, str]:
        gender, profession = self._heroes[who]
        return {name: profession, trait: adjective(self.dice.pick(TRAITS), "nom", gender)}


def sentence(text: str) -> str:
    """Capitalize the first letter and close with a full stop."""
    for i, letter in enumerate(text):
        if letter.isalpha():
            return text[:i] + letter.upper() + text[i + 1 :] + "."
    return text + "."
