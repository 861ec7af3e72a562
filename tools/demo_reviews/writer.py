"""Write the sentences of the demo reviews: opinions with a given polarity, and neutral filler."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar, cast

from tools.demo_reviews import phrases
from tools.demo_reviews.films import FACTS, VIEWINGS, Film
from tools.demo_reviews.grammar import Noun, PortableRandom, inflect_adjective, inflect_fields
from tools.demo_reviews.plots import ARRIVALS, EVENTS, HEROES, RETELLINGS, TRAITS
from tools.demo_reviews.words import ADVERBS, ASPECTS, FILM, SUBSTANCE, VERBS

T = TypeVar("T")

# Share of judgements that negate a word of the opposite polarity.
NEGATION = 0.08
# Share of judgements with two adjectives of the same polarity.
PAIRED = 0.6
# Weights of a plain opinion, two opinions that agree, a contrast, and an expectation.
FORMS = (65, 15, 10, 10)
# Weights of quality, effect, substance, feeling, and reaction.
CLAUSES = (55, 14, 14, 8, 9)
# Share of expectations that turn out wrong, of the author or of somebody quoted.
WRONG_EXPECTATION = 0.6
AGREES = {
    "m": {"my": "", "my_refl": "ся", "my_err": "ся", "my_agree": "ен", "my_went": "ёл"},
    "f": {"my": "а", "my_refl": "ась", "my_err": "лась", "my_agree": "на", "my_went": "ла"},
}


class Writer:
    """A writer of sentences about one film by one author; polarity 0 blames and 1 praises."""

    def __init__(self, rng: PortableRandom, film: Film, gender: str) -> None:
        self.rng = rng
        self.film = film
        self.me = AGREES[gender]
        self._decks: dict[object, list[object]] = {}
        self._heroes = self._deal(HEROES), self._deal(HEROES)

    def write_opinion(self, polarity: int) -> str:
        """Write a sentence whose overall opinion has this polarity."""
        form = self.rng.pick_weighted(
            (self._write_plain, self._write_pair, self._write_contrast, self._write_expectation),
            FORMS,
        )
        return format_sentence(form(polarity))

    def write_conclusion(self, grade: int) -> str:
        """Write an overall judgement: 0 Bad, 1 Neutral, 2 Good."""
        return format_sentence(self.rng.pick(phrases.CONCLUSIONS[grade]).format(**self.me))

    def write_filler(self) -> str:
        """Write a neutral sentence about the film, its story or the visit to the cinema."""
        form = self.rng.pick_weighted(
            (self._write_fact, self._write_viewing, self._write_retelling), (25, 25, 50)
        )
        return format_sentence(form())

    def _deal(self, options: Sequence[T]) -> T:
        """Deal an option that this review has not used yet; start again when all are used."""
        deck = self._decks.setdefault(options, [])
        if not deck:
            deck.extend(options)
            self.rng.shuffle(deck)
        return cast(T, deck.pop())

    def _write_plain(self, polarity: int) -> str:
        aside = self.rng.pick(phrases.ASIDES) if self.rng.flip(0.2) else ""
        return aside + self._write_clause(polarity)

    def _write_pair(self, polarity: int) -> str:
        template = self.rng.pick(phrases.PAIRS)
        return template.format(
            clause=self._write_clause(polarity), also=self._write_clause(polarity)
        )

    def _write_contrast(self, polarity: int) -> str:
        template = self.rng.pick(phrases.CONTRASTS)
        return template.format(
            against=self._write_clause(1 - polarity), clause=self._write_clause(polarity)
        )

    def _write_expectation(self, polarity: int) -> str:
        wrong = self.rng.flip(WRONG_EXPECTATION)
        template = self.rng.pick(phrases.EXPECTED_WRONGLY if wrong else phrases.EXPECTED_RIGHTLY)
        subject = self.rng.pick(FILM.nouns)
        word = self.rng.pick(FILM.adjectives[1 - polarity if wrong else polarity])
        fields = inflect_fields(subject, (word,), "")
        return template.format(clause=self._write_clause(polarity), **fields, **self.me)

    def _write_clause(self, polarity: int) -> str:
        form = self.rng.pick_weighted(
            (
                self._write_quality,
                self._write_effect,
                self._write_substance,
                self._write_feeling,
                self._write_reaction,
            ),
            CLAUSES,
        )
        return form(polarity, self.rng.flip(NEGATION))

    def _pick_subject(self) -> tuple[Noun, tuple[tuple[str, ...], tuple[str, ...]]]:
        aspect = self._deal(ASPECTS)
        return self.rng.pick(aspect.nouns), aspect.adjectives

    def _write_quality(self, polarity: int, negated: bool) -> str:
        subject, adjectives = self._pick_subject()
        options = adjectives[polarity ^ negated]
        words = [self.rng.pick(options)]
        if self.rng.flip(PAIRED):
            words.append(self.rng.pick([word for word in options if word != words[0]]))
        fields = inflect_fields(subject, tuple(words), " или " if negated else " и ")
        template = self.rng.pick(phrases.NEGATED if negated else phrases.AFFIRMED)
        return template.format(**fields, **self.me)

    def _write_effect(self, polarity: int, negated: bool) -> str:
        subject, _ = self._pick_subject()
        verb = self.rng.pick(VERBS[polarity ^ negated])
        template = self.rng.pick(phrases.VERB_NEGATED if negated else phrases.VERB_AFFIRMED)
        return template.format(verb=verb, **inflect_fields(subject, (), ""))

    def _write_substance(self, polarity: int, negated: bool) -> str:
        subject, _ = self._pick_subject()
        stuff = self.rng.pick(SUBSTANCE[polarity ^ negated])
        template = self.rng.pick(phrases.LACKING if negated else phrases.PLENTY)
        return template.format(stuff=stuff, **inflect_fields(subject, (), ""))

    def _write_feeling(self, polarity: int, negated: bool) -> str:
        adverb = self.rng.pick(ADVERBS[polarity ^ negated])
        template = self.rng.pick(phrases.ADVERB_NEGATED if negated else phrases.ADVERB_AFFIRMED)
        return template.format(adverb=adverb)

    def _write_reaction(self, polarity: int, negated: bool) -> str:
        return self._deal(phrases.REACTIONS[polarity])

    def _write_fact(self) -> str:
        film = self.film
        actor = self.rng.pick(film.actors)
        other = self.rng.pick([person for person in film.actors if person is not actor])
        return self._deal(FACTS).format(
            title=film.title,
            genre=film.genre,
            year=film.year,
            director=film.director.format_name(),
            director_gen=film.director.format_name("gen"),
            director_past="а" if film.director.gender == "f" else "",
            actor=actor.format_name(),
            actor_past="а" if actor.gender == "f" else "",
            other=other.format_name(),
            other_past="а" if other.gender == "f" else "",
            **self.me,
        )

    def _write_viewing(self) -> str:
        return self._deal(VIEWINGS).format(**self.me)

    def _write_retelling(self) -> str:
        return self._deal(RETELLINGS).format(
            arrival=self._deal(ARRIVALS),
            event=self._deal(EVENTS),
            second_event=self._deal(EVENTS),
            **self._describe_hero(0, "hero", "trait"),
            **self._describe_hero(1, "second", "second_trait"),
        )

    def _describe_hero(self, who: int, name: str, trait: str) -> dict[str, str]:
        gender, profession = self._heroes[who]
        return {name: profession, trait: inflect_adjective(self.rng.pick(TRAITS), "nom", gender)}


def format_sentence(text: str) -> str:
    """Capitalize the first letter and add a full stop."""
    for i, letter in enumerate(text):
        if letter.isalpha():
            return text[:i] + letter.upper() + text[i + 1 :] + "."
    return text + "."
