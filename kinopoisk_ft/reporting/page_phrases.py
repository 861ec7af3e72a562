"""The phrases of the page, in English and in Russian."""

from __future__ import annotations

PAGE = {
    "contents": {"en": "Contents", "ru": "Содержание"},
    "answer": {"en": "Which approach to take", "ru": "Какой подход выбрать"},
    "limit_name_time": {"en": "Limit: time", "ru": "Ограничение: время"},
    "limit_name_parameters": {
        "en": "Limit: trainable parameters",
        "ru": "Ограничение: обучаемые параметры",
    },
    "limit_name_memory": {"en": "Limit: memory", "ru": "Ограничение: память"},
    "limit_name_quality": {"en": "No limit: quality", "ru": "Без ограничений: качество"},
    "mark_min_time": {"en": "fastest", "ru": "быстрее всех"},
    "mark_best_accuracy": {"en": "highest", "ru": "наибольшая"},
    "mark_best_f1": {"en": "highest", "ru": "наибольшая"},
    "table_caption": {
        "en": "Mean ± deviation over seeds, [95% interval], Δ from the highest score or the "
        "shortest training. The highest need not be beyond chance: see the differences.",
        "ru": "Среднее ± отклонение по seed, [95-процентный интервал], Δ от наибольшей оценки или "
        "самого короткого обучения. Наибольшая может быть случайностью: см. разности.",
    },
    "scroll": {"en": "scrolls sideways", "ru": "прокручивается вбок"},
    "costs": {"en": "What quality costs", "ru": "Чего стоит качество"},
    "cost_title": {"en": "Weighted F1 and {cost}", "ru": "Взвешенная F1 и {cost}"},
    "alt_point": {"en": "{name}: {x}, F1 {f1}", "ru": "{name}: {x}, F1 {f1}"},
    "alt_costs": {
        "en": "{title}. {points}. On the Pareto front: {front}.",
        "ru": "{title}. {points}. На фронте Парето: {front}.",
    },
    "front_note": {
        "en": "The dashed steps are the Pareto front: those on it have the highest F1 measured at "
        "their cost or less. Distances along it may still be chance: see the differences.",
        "ru": "Пунктирные ступени — фронт Парето: у лежащих на нём F1 наибольшая из измеренных при "
        "таких же или меньших затратах. Расстояния вдоль него могут быть случайны: см. разности.",
    },
    "forest_title": {
        "en": "Differences in weighted F1 with 95% intervals",
        "ru": "Разности взвешенных F1 с 95-процентными интервалами",
    },
    "alt_calibration": {
        "en": "Calibration of {name}: ECE {before} as trained, {after} with a temperature.",
        "ru": "Калибровка {name}: ECE {before} после обучения, {after} с температурой.",
    },
    "curves": {"en": "Learning curves", "ru": "Кривые обучения"},
    "alt_curves": {
        "en": "Learning curves of {name}, {n} runs: last weighted F1 on validation {best} on "
        "average.",
        "ru": "Кривые обучения {name}, запусков: {n}; последняя взвешенная F1 на валидации "
        "в среднем {best}.",
    },
    "axis_loss": {"en": "loss", "ru": "функция потерь"},
    "axis_step": {"en": "optimizer step", "ru": "шаг оптимизатора"},
    "curve_training": {"en": "training", "ru": "обучение"},
    "curve_validation": {"en": "validation", "ru": "валидация"},
    "confusion": {
        "en": "Confusion matrices, all seeds together",
        "ru": "Матрицы ошибок, по всем seed вместе",
    },
    "alt_confusion": {
        "en": "Confusion matrix of {name}, true → predicted: {cells}.",
        "ru": "Матрица ошибок {name}, истинный → предсказанный: {cells}.",
    },
    "true": {"en": "true", "ru": "истинный"},
    "predicted": {"en": "predicted", "ru": "предсказанный"},
    "share_of_true": {"en": "share of the true class", "ru": "доля истинного класса"},
    "hard": {"en": "Hardest reviews", "ru": "Самые трудные отзывы"},
    "hard_note": {
        "en": "Those that more than half of the approaches get wrong, the surest mistakes first; "
        "probabilities are means over seeds. A label may be wrong, too.",
        "ru": "Те, в которых ошибается больше половины подходов; сначала самые уверенные ошибки; "
        "вероятности усреднены по seed. Ошибочной может быть и метка.",
    },
    "hard_review": {"en": "Review of row {row}: {label}", "ru": "Отзыв, строка {row}: {label}"},
    "no_text": {
        "en": "The text was not recorded: train again to have it.",
        "ru": "Текст не записан: обучите заново, чтобы он был.",
    },
    "right": {"en": "right", "ru": "верно"},
    "wrong": {"en": "wrong", "ru": "неверно"},
    "leakage": {
        "en": "What training had met of the test set",
        "ru": "Что из тестовой выборки встретилось в обучении",
    },
    "leakage_what": {"en": "shared with training", "ru": "общее с обучением"},
    "leakage_shared": {"en": "found", "ru": "найдено"},
    "leakage_share": {"en": "share of the test set's", "ru": "доля в тестовой выборке"},
    "leakage_films": {"en": "films", "ru": "фильмы"},
    "leakage_authors": {"en": "authors", "ru": "авторы"},
    "leakage_near_duplicates": {
        "en": "reviews with a near-duplicate",
        "ru": "отзывы с почти одинаковым текстом",
    },
    "pretraining": {
        "en": "reviews that the base was pretrained on: {names}",
        "ru": "отзывы, на которых предобучена база: {names}",
    },
    "unknown": {"en": "unknown", "ru": "неизвестно"},
    "leakage_film_guess": {
        "en": "accuracy of guessing each film's usual label (majority class: {majority})",
        "ru": "accuracy угадывания по обычной метке фильма (самый частый класс: {majority})",
    },
    "leakage_p": {
        "en": "That the film tells more than the majority class: p {p} (McNemar, one-sided).",
        "ru": "Что фильм говорит больше, чем самый частый класс: p {p} (Макнемар, односторонний).",
    },
    "sizes": {"en": "Reviews: {parts}.", "ru": "Отзывов: {parts}."},
    "budget_table": {
        "en": "What each row read and was allowed",
        "ru": "Что каждая строка читала и сколько ей было позволено",
    },
    "lr": {"en": "learning rate", "ru": "скорость обучения"},
    "repeat": {"en": "To repeat each row", "ru": "Как повторить каждую строку"},
    "commit": {"en": "commit", "ru": "коммит"},
    "device": {"en": "device", "ru": "устройство"},
    "precision": {"en": "precision", "ru": "точность чисел"},
    "machine": {"en": "machine", "ru": "машина"},
    "versions": {"en": "versions", "ru": "версии"},
    "run_ids": {"en": "runs", "ru": "запуски"},
    "not_recorded": {"en": "not recorded", "ru": "не записано"},
    "command_partial": {
        "en": "Made of the overrides alone: a folder of configs (--config-dir), what a sweep's "
        "file says and values from the environment were not recorded; add what there was of them.",
        "ru": "Составлено из одних переопределений: папка конфигураций (--config-dir), содержимое "
        "файла серии и значения из окружения не записаны; добавьте то из них, что было.",
    },
    "no_command": {
        "en": "The command line was not recorded.",
        "ru": "Командная строка не записана.",
    },
    "published": {"en": "The original study beside ours", "ru": "Исходная работа рядом с нашей"},
    "source": {"en": "source", "ru": "источник"},
    "source_study": {"en": "study", "ru": "исходная работа"},
    "source_ours": {"en": "ours, same recipe", "ru": "наше, тот же рецепт"},
    "source_none": {"en": "ours: not run", "ru": "наше: не запускалось"},
    "published_note": {
        "en": "The study's figures are of one seed on one Colab GPU and without intervals, so "
        "nothing says which differences from them are chance. Its times are of another machine. "
        "Its Mamba read the last position, pads included, and had its best epoch chosen on the "
        "test set; budgets differed (epochs, tokens of context, tokenizers: 1.9 characters a token "
        "for Mamba, 4.4 for BERT); films are shared by train and test, and two thirds of the "
        "reviews name their own grade.",
        "ru": "Числа исходной работы получены с одним seed на одном GPU в Colab и без интервалов, "
        "поэтому неизвестно, какие отличия от них случайны. Время — с другой машины. Mamba там "
        "читала последнюю позицию вместе с заполнением, а лучшая эпоха выбиралась на тестовой "
        "выборке; бюджеты различались (эпохи, длина контекста, токенизаторы: 1,9 символа на токен "
        "у Mamba, 4,4 у BERT); фильмы общие для обучения и теста, а в двух третях отзывов названа "
        "оценка.",
    },
    "files": {
        "en": "The same numbers for programs: comparison.csv, comparison.json, comparison.tex.",
        "ru": "Те же числа для программ: comparison.csv, comparison.json, comparison.tex.",
    },
    "logged": {
        "en": "Logged to run {parent}: {folder}/; its note and the view '{view}' of its experiment "
        "say the same in MLflow's UI",
        "ru": "Записано в запуск {parent}: {folder}/; его описание и вид «{view}» эксперимента "
        "говорят то же в интерфейсе MLflow",
    },
    "view": {"en": "Comparison", "ru": "Сравнение"},
    "see_files": {
        "en": "The whole report: Artifacts, `report/comparison.html`. The runs with the columns "
        "that matter: Views, 'Comparison', above the experiment's runs.",
        "ru": "Весь отчёт: Artifacts, `report/comparison.html`. Запуски с главными столбцами: "
        "Views, «Сравнение», над запусками эксперимента.",
    },
}
