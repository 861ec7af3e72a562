"""Check that written grades are removed in their many forms, and that other numbers stay."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path

import pytest

from kinopoisk_ft.data.written_grades import strip_scores

GRADES = [
    "8 из 10", "10 из 10.", "9/10", "7,5 из 10", "7, 5 из 10", "6.5/10", "9.5. из 10", "8\\10",
    "оценка: 7", "Моя оценка — 8", "моя оценка 7,5", "5 из 5", "4 / 5", "85/100", "100 из 100",
    "0/10", "10/10!", "10+ из 10", "10- из 10", "11 из 10", "1408 из 10", "∞ из 10", "** из 10",
    "десять из десяти", "Девять из десяти!", "1 из 10-ти", "8ки из 10", "7-8 из 10", "3,5/4 из 10",
    "8 баллов", "8-9 баллов из 10", "пять баллов", "один балл из десяти",
    "10 баллов из 10 возможных", "твёрдая семерка", "твердые 9 из 10", "Вердикт: 6.",
    "Итог: 7", "ставлю 8", "Ставлю фильму 9,",
    "поставила бы 10", "я поставил этому фильму 4.", "Итоговая оценка – 6, 2", "оценку 10.",
    "7 черепов из 10", "9 порций корейской моркови из 10", "8,6 из 11", "9 из 10 за музыку",
    "10 из 10\xa0Лучшая", "Сюжет:0 из 10", "10 из 10 P.S.", "Оценка из 10 баллов: -6",
    "8\xa0из\xa010", "конец\n9", "конец.\n\n 10!\n",
]  # fmt: skip
INNOCENT = [
    "24/7", "событие 11/9", "11/22/63", "09/10/2005", "9/10/2005", "5.10.2001", "2 из 3 друзей",
    "2/3 фильма", "3/10 фильма", "первые 1/5 части", "1/10 часть обаяния", "9 из 10 зрителей",
    "в 9 случаях из 10 это скучно", "в девяти случаях из десяти", "семья из пяти человек",
    "сезон 1 серия 10", "50/50", "18+", "рейтинг 18+", "рейтинг PG-13", "рейтинг '12+'",
    "фильм «9 рота»", "фильм «1408»", "10 лет спустя", "один из 10 лучших фильмов", "из 10 фильмов",
    "поставил 2 спектакля", "поставил четыре спектакля", "Итог: 2 премии «Оскар»",
    "оценку 92 тысяч", "10-балльная шкала", "шторм в 9 баллов", "землетрясение силой 7 баллов",
    "120 минут", "в 2010 году", "вышел 8 марта", "из 100 человек", "2 из 5 серий", "смотрел 3 раза",
    "балл", "\n\n10 лет прошло", "7 из 8 гномов", "играл 5 из 11 героев", "кресло 7/11",
    "оценка критиков",
]  # fmt: skip
# Written independently of the implementation; it also matches some other numbers.
WRITTEN = re.compile(r"\d\s*(?:из|/|\\)\s*(?:10|5|100)\b|оценк\w*\W{0,4}\d|ставлю\W{0,3}\d", re.I)


@pytest.mark.parametrize("grade", GRADES)
def test_grades_go(grade: str) -> None:
    left = strip_scores(f"Хороший фильм, советую. {grade}")
    kept = "за музыку" if "музыку" in grade else "Лучшая" if "Лучшая" in grade else ""
    assert left.startswith("Хороший фильм, советую.")
    assert kept in left
    assert not re.search(r"\d|десят|балл|∞|\*|ерк", left), left


@pytest.mark.parametrize("text", INNOCENT)
def test_other_numbers_stay(text: str) -> None:
    for whole in (text, f"Смотрели {text} и спорили.", f"Начало.\n{text}\nКонец."):
        assert strip_scores(whole) == whole


def test_the_rest_of_a_text_stays_as_it_is() -> None:
    text = "Был  там,\nв 1999 году.\n\nСюжет: 7/10, музыка: хороша.\n10 из 10"
    assert strip_scores(text) == "Был  там,\nв 1999 году.\n\nСюжет: , музыка: хороша.\n"
    assert strip_scores("Ни одной цифры.") == "Ни одной цифры."


@pytest.mark.slow
def test_few_real_reviews_keep_a_grade(shared: Path) -> None:
    with gzip.open(shared / "data" / "kinopoisk.jsonl.gz", "rt", encoding="utf-8") as lines:
        texts = [json.loads(line)["content"] for line in lines]
    before = sum(bool(WRITTEN.search(text)) for text in texts) / len(texts)
    stripped = [strip_scores(text) for text in texts]
    after = sum(bool(WRITTEN.search(text)) for text in stripped) / len(texts)
    assert before > 0.6
    assert after < 0.01
    # Grades are short, so only a few words of each review are removed.
    assert sum(map(len, stripped)) > 0.99 * sum(map(len, texts))
