"""Remove written grades ("8 из 10", "оценка: 7") from reviews.

A written grade reveals the label of a review. Two thirds of the published reviews contain a grade.
Dates, fractions and counts ("24/7", "2/3 фильма", "9 из 10 зрителей") are kept.
"""

from __future__ import annotations

import re

# The match does not start in the middle of a number, date or fraction.
# Python's `re` accepts only lookbehinds of fixed width, so there are two of them.
_ALONE = r"(?<!\d)(?<!\d[.,:/\\])"
# Case endings of numerals: "10-ти", "8ки", "7ка".
_CASE = r"(?:-?(?:ти|ка|ку|ки|кой|х|ми|ю)\b)?"
_WORDS = r"""\b(?:ноль|нуля|два|двух|три|тр[её]х|четыре|четыр[её]х|пять|пяти|шесть|шести|семь|семи
    |восемь|восьми|девять|девяти|десять|десяти|сто|бесконечность)\b"""
_NOUNS = r"""\b(?:(?:десят|девят|восьм[её]р|сем[её]р|шест[её]р|пят[её]р|четв[её]р|трой|двой)к[ауи]
    |единиц[ауы])\b"""
# A number from 0 to 10.
_TEN = r"(?:10|\d)(?:[.,]\s?\d{1,2})?(?!\d|[.,]\d)"
# Any number, because some grades are jokes: 11, 1408, "9.5.".
_ANY = r"(?:\d{1,2},\s?\d{1,2}|\d\.\d{1,2}|\d{1,4})[.+–-]?"
_GRADE = rf"""(?:{_ALONE}[-–]?{_ANY}{_CASE}|{_WORDS}|{_NOUNS}|∞|\*+)
    (?:\s?[-–—/]\s?(?:{_WORDS}|\d{{1,2}}(?:[.,]\d)?))?"""
_POINTS = r"(?:балл?(?:а|ов|ы|ах|ам)?|очк(?:о|а|ов)|зв[её]зд[аы]?)\b"
# Nouns that can be counted: "9 из 10 зрителей" is not a grade, "9 из 10 за музыку" is one.
_COUNTED = r"""(?:человек|люд|зрител|друз|знаком|случа|фильмов|картин\b|лент\b|сери[йия]|сезонов
    |раз\b|мужчин|женщин|девуш|парн|дет(?:ей|ям)|критик|стран\b|отзыв|рецензи|сцен\b|минут|шут(?:ок|кам)
    |акт[её]ров|героев|персонаж|номинац|эпизод|лучших|худших|самых|главных|част|забит)"""
# Nouns that make a number a fraction: "3/10 фильма" is not a grade.
_WHOLE = r"(?:фильма|хронометраж|времени|истории|сюжета|всего|доля)"
# The end of a phrase.
_END = r"""(?=\s*(?:\Z|[.,;:!?…()\[\]«»"'—]|-\s))"""
# Words that may occur between "ставлю" or "оценка" and the number.
_BETWEEN = r"""(?:\s+(?:бы|ему|ей|этому|этой|этот|сему|данно\w+|фильму?|картине|сериалу|ленте|кино
    |в|на|от|до|по|оценку|ниже|выше|не|только|лишь|максимум|тв[её]рд\w+|моя|моей|мою|меня|из\s+10
    |балл\w*|всего|все|целых))*\s*[:—–\-=(«"'`]*\s*[-–—:]?\s*"""

_WRITTEN = re.compile(
    rf"""
    (?:(?=[-–∞*\d])|\b(?=[бвдеинопрстчш]))  # fast check of the first character of a grade
    (?:
    {_GRADE}(?:\s*{_POINTS})?\s+из\s+(?:10|100|десяти|ста){_CASE}(?![.,/]?\d)
        (?:\s+(?:{_POINTS}|возможных\b))?(?!\s+{_COUNTED})
    # "7 барабанных перепонок из 10."
    | {_GRADE}(?:\s+(?!{_COUNTED}|из\b)[а-яё-]+){{1,4}}\s+из\s+(?:10|десяти)\b{_END}
    # "3 из 5.", "8,6 из 11.": such numbers are often counts, so the phrase must end after them
    | {_ALONE}(?:[0-5](?:[.,]\d)?[+-]?|100)\s+из\s+(?:5|пяти|100)\b{_END}
    | {_ALONE}\d[.,]\d{{1,2}}\s+из\s+\d{{1,2}}\b{_END}
    | {_ALONE}(?:10|\d(?:[.,]\d{{1,2}})?)\s?[/\\]\s?10(?!\s?[/\\]|[.,]?\d)
        (?!\s+(?:{_COUNTED}|{_WHOLE}))
    | {_ALONE}(?:[0-5](?:[.,]\d)?\s?/\s?5|\d{{1,3}}\s?/\s?100)(?!\s?[/\\]|[.,]?\d){_END}
    | (?:{_ALONE}[-–]?{_TEN}(?:\s?[-–—]\s?{_TEN})?{_CASE}|{_WORDS}|\bод(?:ин|ного)|\bполтора)
        \s*балл?(?:а|ов|ам|ах)?\b(?:\s+из\s+(?:10|десяти)\b)?
    | \b(?:оценк\w*|рейтинг\w*|вердикт|итог\w*|(?:по)?став(?:лю|ил[аи]?|ить|им|ьте|лен[аоы]?))
        {_BETWEEN}(?:{_TEN}{_CASE}(?![%+\w]|-\d)
            (?:{_END}|(?=\s+(?:и|за|но|из-за|так|лишь|потому)\b))|{_NOUNS})
    | \bтв[её]рд\w+\s+(?:{_TEN}{_CASE}(?![%+\w])|{_NOUNS})(?:\s*(?:/|из)\s*(?:10|десяти)\b)?
    )""",
    re.VERBOSE | re.IGNORECASE,
)
# Only a line with one of these can match _WRITTEN. A search for _WRITTEN takes longer.
_HINT = re.compile(
    r"из\s+(?:\d|десяти|ста|пяти)|[/\\]\s?\d|балл?|оценк|рейтинг|вердикт|итог|став|тв[её]рд",
    re.IGNORECASE,
)
_LAST_LINE = re.compile(rf"\n[ \t\xa0]*{_TEN}[.!]*\s*\Z")
# After these words, points are not a grade, but an earthquake magnitude or an exam result.
_OTHER_POINTS = re.compile(r"землетряс|шторм|рихтер|магнитуд|\biq\b|\bегэ\b|экзам", re.IGNORECASE)
# Number of characters before the points that are searched for these words.
_CONTEXT = 40


def strip_scores(text: str) -> str:
    """Remove written grades from a text.

    The following are grades:

    - numbers on a scale: "8 из 10", "9/10"; at the end of a phrase also "3 из 5"
    - points: "7 баллов"
    - numbers after a word for a grade: "оценка: 7", "ставлю 8", "твёрдая семёрка"
    - jokes: "11 из 10"; at the end of a phrase also "7 черепов из 10"
    - a number as the last line
    """
    lines = text.split("\n")
    # Each line is searched separately, so that a match never continues in the next line.
    stripped = (_WRITTEN.sub(_remove_grade, line) if _HINT.search(line) else line for line in lines)
    return _LAST_LINE.sub("\n", "\n".join(stripped))


def _remove_grade(match: re.Match[str]) -> str:
    before = match.string[max(0, match.start() - _CONTEXT) : match.start()]
    return match.group() if _OTHER_POINTS.search(before) else ""
