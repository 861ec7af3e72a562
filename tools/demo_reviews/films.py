"""List the invented films, people and neutral sentences of the demo reviews."""

from __future__ import annotations

from dataclasses import dataclass

from tools.demo_reviews.grammar import inflect_surname


@dataclass(frozen=True)
class Person:
    """A person's first name, and the surname in the masculine nominative."""

    first: str
    last: str
    gender: str

    def format_name(self, case: str = "nom") -> str:
        """Format both names in the nominative, and the surname alone in the other cases."""
        last = inflect_surname(self.last, case, self.gender)
        return f"{self.first} {last}" if case == "nom" else last


@dataclass(frozen=True)
class Film:
    """The facts about a film that a review can state without an opinion."""

    title: str
    genre: str
    year: int
    director: Person
    actors: tuple[Person, ...]


LAST = [
    "Ковалёв",
    "Орлов",
    "Лаптев",
    "Зимин",
    "Громов",
    "Беляев",
    "Сомов",
    "Рябов",
    "Тихонов",
    "Журавлин",
    "Климов",
    "Юдин",
    "Ершов",
    "Лосев",
    "Панов",
    "Гусев",
    "Дёмин",
    "Котов",
    "Исаев",
    "Шилов",
]
MEN = ["Андрей", "Игорь", "Павел", "Сергей", "Олег", "Максим", "Юрий", "Антон"]
WOMEN = ["Анна", "Елена", "Ольга", "Марина", "Вера", "Ирина", "Дарья", "Нина"]
DIRECTORS = tuple(
    Person(WOMEN[i % 8], LAST[i], "f") if i % 3 == 2 else Person(MEN[i % 8], LAST[i], "m")
    for i in range(14)
)
ACTORS = tuple(
    Person(WOMEN[(3 * i) % 8], LAST[(7 * i + 5) % 20], "f")
    if i % 2
    else Person(MEN[(5 * i) % 8], LAST[(7 * i + 5) % 20], "m")
    for i in range(30)
)
TITLES = {
    "драма": "Тихая гавань|Последний паром|Письма отцу|Дом у реки|Северный берег|Чужой причал|"
    "Осенний сад|Белые вечера|Вдова капитана|Долгая зима|Стеклянный мост|Три соседки",
    "комедия": "Отпуск по расписанию|Тёща на борту|Два билета|Свадьба под ключ|Мой сосед Гоша|"
    "Начальник лета|Дача на двоих|Кот в мундире|Ошибка курьера|Пятый лишний",
    "триллер": "Чёрный ход|Третий свидетель|Точка съёмки|Слепая зона|Красный лес|Ключ от подвала|"
    "Немой звонок|Тень маяка|Девятый этаж|Обратный отсчёт",
    "фантастика": "Сигнал с орбиты|Город под куполом|Пыль Европы|Последний инженер|Машина снов|"
    "Двойник пилота|Холодное солнце|Экипаж семь|Память воды|Хранитель кода",
    "боевик": "Линия огня|Горный патруль|Быстрый груз|Порт назначения|Старый капкан|Стальной ветер|"
    "Погоня на рассвете|За перевалом",
    "мелодрама": "Вальс на крыше|Весна в Риге|Адрес любви|Мы и море|Ночной трамвай|Яблоневый цвет|"
    "Случайный вальс|Тёплый снег",
    "детектив": "Дело часовщика|Пропавший рейс|Чужое алиби|Тайна старой мельницы|Шестой гость|"
    "След на снегу",
}
FILMS = tuple(
    Film(
        title,
        genre,
        1988 + (i * 11) % 30,
        DIRECTORS[i * 5 % 14],
        tuple(ACTORS[(i * 7 + k * 11) % 30] for k in range(3)),
    )
    for i, (genre, title) in enumerate(
        (genre, title) for genre, titles in TITLES.items() for title in titles.split("|")
    )
)
AUTHORS = tuple(
    (name, gender)
    for gender, names in (
        ("m", "Северянин kinoman_77 Старый_зритель Аркадий ночной_сеанс Pavel_K Тимур doc_orlov"),
        ("m", "Лев_с_Невы mr_frame Боцман Григорий последний_ряд Егор_М volk_1980 Инженер"),
        ("f", "Лисёнок anna_v Тамара Осенняя marina_film Полина зрительница Катя_из_Тулы"),
        ("f", "rita_reads Ольга_С Снежана Марта попкорн_и_я Алиса_М Вероника Соня"),
    )
    for name in names.split()
)


# Fields: facts of the film, past tense endings of the named person, and endings of the author.
FACTS = (
    "«{title}» — {genre} {year} года",
    "фильм «{title}» вышел на экраны в {year} году",
    "снял{director_past} картину {director}",
    "режиссёр этой картины — {director}",
    "до этого я не видел{my} фильмов {director_gen}",
    "главную роль сыграл{actor_past} {actor}",
    "на экране {actor} и {other}",
    "в одной из ролей {actor}",
    "роль второго плана сыграл{other_past} {other}",
    "{genre} — не мой жанр, но на имя {director_gen} я пош{my_went}",
    "длится фильм почти два часа",
    "снимали фильм два года в трёх городах",
    "в основе сценария лежит небольшая повесть",
    "книгу, по которой снят фильм, я не читал{my}",
)
VIEWINGS = (
    "смотрел{my} в кинотеатре с друзьями",
    "смотрел{my} дома поздно вечером",
    "посмотрел{my} фильм в выходные вместе с семьёй",
    "на сеанс попал{my} случайно",
    "зал был наполовину пуст",
    "билеты мы купили за неделю до сеанса",
    "не каждый вечер удаётся выбраться в кино",
    "не буду пересказывать всё, что происходит на экране",
    "не секрет, что таких фильмов сейчас снимают много",
    "о фильме узнал{my} из рекламы в метро",
    "перед сеансом я прочитал{my} несколько отзывов",
    "после сеанса мы долго шли домой пешком",
    "пишу отзыв сразу после просмотра",
    "о вкусах не спорят, поэтому скажу только за себя",
)
