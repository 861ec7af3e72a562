"""Every phrase of the report in English and in Russian; {names} are filled in by `Words`."""

from __future__ import annotations

TABLE = {
    "title": {"en": "Comparison of approaches", "ru": "Сравнение подходов"},
    "experiment": {"en": "Experiment: {name}", "ru": "Эксперимент: {name}"},
    "sweep": {"en": "Sweep: {parent}", "ru": "Серия запусков: {parent}"},
    "data": {
        "en": "Data: {data}{rule}, test rows {digest}",
        "ru": "Данные: {data}{rule}, тестовые строки {digest}",
    },
    "split_rule": {"en": ", split {rule}", "ru": ", разбиение {rule}"},
    "approach": {"en": "approach", "ru": "подход"},
    "accuracy": {"en": "accuracy", "ru": "accuracy"},
    "f1_weighted": {"en": "F1 weighted", "ru": "F1 взвешенная"},
    "f1_macro": {"en": "F1 macro", "ru": "F1 макро"},
    "train_seconds": {"en": "training", "ru": "обучение"},
    "eval_seconds": {"en": "evaluation", "ru": "оценка"},
    "trainable_parameters": {"en": "trainable parameters", "ru": "обучаемые параметры"},
    "total_parameters": {"en": "all parameters", "ru": "все параметры"},
    "peak_memory_mb": {"en": "peak memory", "ru": "пик памяти"},
    "tokens_per_second": {"en": "tokens per second", "ru": "токенов в секунду"},
    "characters_seen_share": {"en": "characters seen", "ru": "прочитано символов"},
    "accuracy_from_best": {"en": "accuracy from best", "ru": "accuracy от лучшей"},
    "f1_weighted_from_best": {"en": "F1 weighted from best", "ru": "F1 взв. от лучшей"},
    "train_seconds_from_best": {"en": "training from best, s", "ru": "обучение от лучшего, с"},
    "unit_s": {"en": "s", "ru": "с"},
    "unit_MB": {"en": "MB", "ru": "МБ"},
    "unit_nats": {"en": "nats", "ru": "нат"},
    "yes": {"en": "yes", "ru": "да"},
    "no": {"en": "no", "ru": "нет"},
    "majority": {"en": "majority class", "ru": "самый частый класс"},
    "results": {"en": "Results on the test set", "ru": "Результаты на тестовой выборке"},
    "sizes_table": {
        "en": "Size, speed and what was read",
        "ru": "Размер, скорость и сколько прочитано",
    },
    "max_length": {"en": "tokens of context", "ru": "токенов контекста"},
    "against_best": {"en": "Against the best", "ru": "По сравнению с лучшим"},
    "best_values": {
        "en": "Best values: accuracy {accuracy}, weighted F1 {f1_weighted}, training time "
        "{train_seconds} s.",
        "ru": "Лучшие значения: accuracy {accuracy}, взвешенная F1 {f1_weighted}, время обучения "
        "{train_seconds} с.",
    },
    "notes": {"en": "Notes", "ru": "Примечания"},
    "conclusions": {"en": "Conclusions", "ru": "Выводы"},
    "failed": {
        "en": "Failed runs, not ranked: {count}",
        "ru": "Неудачные запуски, в сравнении не участвуют: {count}",
    },
    "count": {"en": "count", "ru": "число"},
    "seeds": {"en": "seeds", "ru": "seed"},
    "cause": {"en": "cause", "ru": "причина"},
    "cause_raised": {"en": "{detail}", "ru": "{detail}"},
    "cause_killed": {"en": "killed", "ru": "остановлен извне"},
    "cause_no_traceback": {"en": "no traceback was kept", "ru": "трассировка не сохранена"},
    "cause_incomplete": {"en": "finished without {detail}", "ru": "завершён без {detail}"},
    "written": {"en": "Written:", "ru": "Записано:"},
    "and": {"en": "and", "ru": "и"},
    "others": {"en": "the others", "ru": "остальные"},
    "thousand": {"en": "K", "ru": "тыс."},
    "million": {"en": "M", "ru": "млн"},
    "billion": {"en": "B", "ru": "млрд"},
    "axis_train_seconds": {
        "en": "training time, s (logarithmic)",
        "ru": "время обучения, с (логарифмическая шкала)",
    },
    "axis_trainable_parameters": {
        "en": "trainable parameters (logarithmic)",
        "ru": "обучаемые параметры (логарифмическая шкала)",
    },
    "axis_peak_memory_mb": {
        "en": "peak memory, MB (logarithmic)",
        "ru": "пик памяти, МБ (логарифмическая шкала)",
    },
    "axis_f1": {"en": "weighted F1", "ru": "взвешенная F1"},
    "majority_line": {
        "en": "majority class: weighted F1 {f1}",
        "ru": "самый частый класс: взвешенная F1 {f1}",
    },
}

NOTES = {
    "note_spread": {
        "en": "± is the standard deviation of one seed; n is the number of seeds.",
        "ru": "± — стандартное отклонение между seed; n — число seed.",
    },
    "note_tables": {
        "en": "Runs on different data or test rows are not compared with one another: {count} "
        "tables follow.",
        "ru": "Запуски на разных данных или тестовых строках между собой не сравниваются: таблиц "
        "ниже — {count}.",
    },
    "note_superseded": {
        "en": "Older runs of the same approach, seed and test rows, left out: {count}.",
        "ru": "Более старые запуски с тем же подходом, seed и тестовыми строками не учтены: "
        "{count}.",
    },
    "note_unfinished": {
        "en": "Runs that have not finished, left out: {count}.",
        "ru": "Незавершённые запуски не учтены: {count}.",
    },
    "note_no_tfidf": {
        "en": "The TF-IDF baseline is missing: run model=tfidf on this data to see what counting "
        "words is worth.",
        "ru": "Нет базовой модели TF-IDF: запустите model=tfidf на этих данных, чтобы увидеть, "
        "что даёт подсчёт слов.",
    },
    "note_no_majority": {
        "en": "No run recorded the majority class's scores.",
        "ru": "Ни один запуск не записал оценки самого частого класса.",
    },
    "note_majority_differs": {
        "en": "The majority class's scores differ between these runs: the data behind the same "
        "row numbers are not the same.",
        "ru": "Оценки самого частого класса у этих запусков различаются: за одинаковыми номерами "
        "строк стоят разные данные.",
    },
    "note_differs": {
        "en": "Not on an equal footing, {what}: {groups}.",
        "ru": "Условия не равны, {what}: {groups}.",
    },
    "data.strip_scores": {
        "en": "written grades taken out (data.strip_scores)",
        "ru": "написанные оценки убраны (data.strip_scores)",
    },
    "data.max_characters": {
        "en": "characters given of a review (data.max_characters)",
        "ru": "символов отзыва дано (data.max_characters)",
    },
    "data.max_length": {
        "en": "tokens of context (data.max_length)",
        "ru": "токенов контекста (data.max_length)",
    },
    "data.truncation": {
        "en": "part kept of a long review (data.truncation)",
        "ru": "что остаётся от длинного отзыва (data.truncation)",
    },
    "trainer.budget": {"en": "budget (trainer.budget)", "ru": "бюджет (trainer.budget)"},
    "trainer.epochs": {"en": "epochs (trainer.epochs)", "ru": "эпохи (trainer.epochs)"},
    "trainer.max_steps": {
        "en": "most optimizer steps (trainer.max_steps)",
        "ru": "шагов оптимизатора не больше (trainer.max_steps)",
    },
    "trainer.batch_size": {
        "en": "reviews in an optimizer step (trainer.batch_size)",
        "ru": "отзывов в шаге оптимизатора (trainer.batch_size)",
    },
    "trainer.eval_every": {
        "en": "evaluations, of which the best counts (trainer.eval_every)",
        "ru": "проверки, из которых берётся лучшая (trainer.eval_every)",
    },
    "trainer.patience": {
        "en": "evaluations without a gain before it stops (trainer.patience)",
        "ru": "проверок без улучшения до остановки (trainer.patience)",
    },
    "search": {
        "en": "learning rate and more chosen by a search (sweep=lr_search)",
        "ru": "скорость обучения и прочее выбраны поиском (sweep=lr_search)",
    },
    "trainer.class_weights": {
        "en": "weights of classes (trainer.class_weights)",
        "ru": "веса классов (trainer.class_weights)",
    },
    "trainer.sampling": {
        "en": "sampling (trainer.sampling)",
        "ru": "выбор примеров (trainer.sampling)",
    },
    "note_pretraining_unknown": {
        "en": "Unknown whether pretraining had read test reviews: {names}. Their bases have no "
        "record of it.",
        "ru": "Неизвестно, были ли тестовые отзывы в предобучении: {names}. В их базах об этом "
        "ничего не записано.",
    },
    "note_not_above_majority": {
        "en": "Not above the majority class on test or validation: {names}. These models have not "
        "learned; do not compare their scores.",
        "ru": "Не выше самого частого класса на тестовой или проверочной выборке: {names}. Эти "
        "модели не обучились; сравнивать их оценки нельзя.",
    },
    "note_random_start": {
        "en": "Trained from random weights, without pretraining: {names}. Compare them with each "
        "other; against pretrained networks they show the value of pretraining, not of an "
        "architecture.",
        "ru": "Обучены со случайных весов, без предобучения: {names}. Сравнивайте их между собой: "
        "сравнение с предобученными сетями показывает пользу предобучения, а не архитектуры.",
    },
    "note_owed": {
        "en": "Frozen layers were run once, without dropout: {names}. The times hold that pass, "
        "even where an earlier run had made it.",
        "ru": "Замороженные слои пройдены один раз, без dropout: {names}. Время включает этот "
        "проход, даже если его сделал более ранний запуск.",
    },
    "note_times": {
        "en": "{name}: by the same recipe its runs trained from {low} to {high} s (was the machine "
        "busy with something else?): its times say little.",
        "ru": "{name}: по одному рецепту запуски обучались от {low} до {high} с (машина была "
        "занята другим?): по этим временам судить нельзя.",
    },
    "note_missing": {
        "en": "{name}: not recorded: {columns}.",
        "ru": "{name}: не записано: {columns}.",
    },
}
