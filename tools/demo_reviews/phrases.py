"""List the sentence templates of the demo reviews that express an opinion.

`grammar.inflect_fields` builds the fields; fields that start with `my` agree with the author.
"""

from __future__ import annotations

# The sentence affirms the adjective.
AFFIRMED = (
    "{noun} здесь {adj}",
    "{noun} тут действительно {adj}",
    "{noun} получил{refl} {adj_ins}",
    "{noun} оказал{refl} {adj_ins}",
    "{noun} выш{came} по-настоящему {adj_ins}",
    "{noun} выгляд{it} {adj_ins}",
    "{noun} показал{refl} мне {adj_ins}",
    "{noun_acc} можно смело назвать {adj_ins}",
    "я бы назвал{my} {noun_acc} {adj_ins}",
    "у фильма {adj} {noun}",
    "нельзя не заметить, как{what} здесь {adj} {noun}",
    "не скрою, что {noun} {adj}",
    "нельзя не признать, что {noun} {adj}",
    "не могу не отметить {adj_acc} {noun_acc}",
    "много {any_gen} есть в {noun_prep}",
)
# The sentence negates the adjective.
NEGATED = (
    "{noun} здесь не {adj}",
    "{noun} вовсе не {adj}",
    "{noun} получил{refl} не {adj_ins}",
    "{noun} оказал{refl} совсем не {adj_ins}",
    "{noun} выш{came} далеко не {adj_ins}",
    "{noun} не выгляд{it} {adj_ins}",
    "{noun} не показал{refl} мне {adj_ins}",
    "{noun_acc} нельзя назвать {adj_ins}",
    "{noun_acc} не назовёшь {adj_ins}",
    "я бы не назвал{my} {noun_acc} {adj_ins}",
    "не могу сказать, что {noun} {adj}",
    "не соглашусь, что {noun} {adj}",
    "ничего {any_gen} в {noun_prep} нет",
    "в {noun_prep} нет ничего {any_gen}",
)
VERB_AFFIRMED = (
    "{noun} меня {verb}{past}",
    "{noun} по-настоящему {verb}{past}",
    "{noun} очень {verb}{past}",
    "больше всего {verb}{past} {noun}",
    "не скрою, {noun} меня {verb}{past}",
)
VERB_NEGATED = (
    "{noun} меня не {verb}{past}",
    "{noun} ничуть не {verb}{past}",
    "{noun} совсем не {verb}{past}",
    "не могу сказать, что {noun} меня {verb}{past}",
)
PLENTY = (
    "{stuff} здесь много",
    "{stuff} в фильме хватает",
    "в {noun_prep} хватает {stuff}",
    "в {noun_prep} очень много {stuff}",
    "сколько же {stuff} в {noun_prep}",
)
LACKING = (
    "в {noun_prep} не хватает {stuff}",
    "в {noun_prep} нет {stuff}",
    "{stuff} здесь нет совсем",
    "не вижу {stuff} в {noun_prep}",
    "фильм обошёлся без {stuff}",
)
ADVERB_AFFIRMED = (
    "смотреть было {adverb}",
    "мне было очень {adverb}",
    "под конец стало {adverb}",
    "за героями наблюдать {adverb}",
)
ADVERB_NEGATED = (
    "смотреть было не {adverb}",
    "мне ни разу не стало {adverb}",
    "мне было совсем не {adverb}",
    "за героями наблюдать не {adverb}",
)
# Indexed by polarity. The same words occur in both, so that single words do not decide the label.
REACTIONS = (
    (
        "верить героям не получается",
        "за героев совсем не переживаешь",
        "хотелось выключить и заняться делами",
        "на часы смотришь каждые пять минут",
        "скучать приходится постоянно",
        "пересматривать не хочется",
        "после титров думать не о чем",
        "время тянется бесконечно",
        "внимание удержать не удаётся",
    ),
    (
        "верить героям получается сразу",
        "за героев переживаешь всерьёз",
        "ни разу не хотелось выключить",
        "на часы не смотришь",
        "скучать не приходится",
        "хочется пересматривать",
        "после титров есть о чём думать",
        "время не тянется совсем",
        "внимание удержать удаётся",
    ),
)
# The film was expected to be `adj` and was not.
EXPECTED_WRONGLY = (
    "ждал{my} {any_gen} кино, а {clause}",
    "думал{my}, что {noun} будет {adj_ins}, но {clause}",
    "опасал{my_refl}, что увижу что-то {any_nom}, но {clause}",
    "друзья называли {noun_acc} {adj_ins}, а {clause}",
    "критики пишут, что {noun} {adj}, но {clause}",
)
# The film was expected to be `adj` and was.
EXPECTED_RIGHTLY = (
    "ждал{my} {any_gen} кино и не ошиб{my_err}: {clause}",
    "думал{my}, что {noun} будет {adj_ins}, так и есть: {clause}",
    "друзья называли {noun_acc} {adj_ins} и были правы: {clause}",
    "критики пишут, что {noun} {adj}, и я соглас{my_agree}: {clause}",
)
# The clause `against` contradicts the opinion of the sentence, and the other clause states it. Most
# conjunctions occur with both orders, so that single words do not tell which clause is which.
CONTRASTS = (
    "{against}, но {clause}",
    "{against}, зато {clause}",
    "{against}, и всё же {clause}",
    "хотя {against}, {clause}",
    "{clause}, хотя {against}",
    "пусть {against}, всё-таки {clause}",
    "{clause}, пусть даже {against}",
    "несмотря на то что {against}, {clause}",
    "{clause}, несмотря на то что {against}",
)
PAIRS = (
    "{clause}, и {also}",
    "{clause}, а {also}",
    "{clause}, к тому же {also}",
    "{clause}, да и {also}",
)
ASIDES = (
    "на мой взгляд, ",
    "честно говоря, ",
    "по-моему, ",
    "как мне кажется, ",
    "скажу прямо: ",
    "и ещё: ",
    "надо сказать, ",
    "отдельно скажу: ",
)
# Overall judgements by grade (Bad, Neutral, Good), which open or close a review.
CONCLUSIONS = (
    (
        "рекомендовать фильм не могу",
        "одним словом, времени жаль",
        "советовать это кино никому не стану",
        "второй раз смотреть не буду",
        "скажу коротко: фильм не удался",
        "в целом картина мне не понравилась",
    ),
    (
        "впечатления остались смешанные",
        "одним словом, фильм на любителя",
        "советовать или нет, я так и не решил{my}",
        "посмотреть можно, но на один раз",
        "скажу коротко: пятьдесят на пятьдесят",
        "в целом картина обычная",
    ),
    (
        "рекомендовать фильм могу",
        "одним словом, времени не жаль",
        "советовать это кино стану всем",
        "второй раз смотреть буду",
        "скажу коротко: фильм удался",
        "в целом картина мне понравилась",
    ),
)
# Titles of reviews, without an opinion.
TITLES = ("О фильме", "После сеанса", "Мысли вслух", "Вечер в кино", "Коротко", "По порядку")
