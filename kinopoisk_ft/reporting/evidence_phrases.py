"""The phrases of differences, calibration and slices, in English and in Russian."""

from __future__ import annotations

EVIDENCE = {
    "interval": {"en": "[{low}, {high}]", "ru": "[{low}; {high}]"},
    "below": {"en": "<{value}", "ru": "<{value}"},
    "differences": {"en": "Pairwise differences", "ru": "Попарные разности"},
    "against": {"en": "less", "ru": "минус"},
    "difference": {"en": "Δ {metric}", "ru": "Δ {metric}"},
    "p": {"en": "p", "ru": "p"},
    "p_holm": {"en": "p (Holm)", "ru": "p (Холм)"},
    "mcnemar": {"en": "McNemar p", "ru": "Макнемар, p"},
    "mcnemar_holm": {"en": "McNemar p (Holm)", "ru": "Макнемар, p (Холм)"},
    "unpaired_mark": {"en": "{name} (unpaired)", "ru": "{name} (без пар)"},
    "axis_difference": {
        "en": "difference in weighted F1, with its 95% interval",
        "ru": "разность взвешенных F1 с 95-процентным интервалом",
    },
    "row_less": {"en": "{a} less {b}", "ru": "{a} минус {b}"},
    "legend_beyond": {
        "en": "beyond chance (Holm-corrected p ≤ 0.05)",
        "ru": "больше случайного (p с поправкой Холма ≤ 0,05)",
    },
    "legend_noise": {"en": "not told apart", "ru": "не различимы"},
    "calibration": {
        "en": "Calibration: ECE, Brier score and negative log-likelihood",
        "ru": "Калибровка: ECE, оценка Брайера и отрицательный логарифм правдоподобия",
    },
    "temperature": {"en": "temperature", "ru": "температура"},
    "ece": {"en": "ECE", "ru": "ECE"},
    "ece_calibrated": {"en": "ECE scaled", "ru": "ECE с темп."},
    "brier": {"en": "Brier", "ru": "Брайер"},
    "brier_calibrated": {"en": "Brier scaled", "ru": "Брайер с темп."},
    "nll": {"en": "NLL", "ru": "NLL"},
    "nll_calibrated": {"en": "NLL scaled", "ru": "NLL с темп."},
    "threshold": {"en": "threshold", "ru": "порог"},
    "f1_weighted_threshold": {
        "en": "F1 weighted at threshold",
        "ru": "F1 взвешенная с порогом",
    },
    "accuracy_threshold": {"en": "accuracy at threshold", "ru": "accuracy с порогом"},
    "axis_confidence": {"en": "probability of the answer", "ru": "вероятность ответа"},
    "axis_right": {"en": "share of right answers", "ru": "доля верных ответов"},
    "before": {"en": "as trained, ECE {ece}", "ru": "после обучения, ECE {ece}"},
    "after": {
        "en": "temperature {temperature}, ECE {ece}",
        "ru": "температура {temperature}, ECE {ece}",
    },
    "slices_accuracy": {
        "en": "Accuracy on parts of the test set",
        "ru": "Accuracy на частях тестовой выборки",
    },
    "slices_f1_weighted": {
        "en": "Weighted F1 on parts of the test set",
        "ru": "Взвешенная F1 на частях тестовой выборки",
    },
    "slice": {"en": "part", "ru": "часть"},
    "reviews": {"en": "reviews", "ru": "отзывы"},
    "by_characters": {"en": "characters", "ru": "символы"},
    "by_truncated": {"en": "share cut off", "ru": "обрезанная доля"},
    "by_grade10": {"en": "grade of 10", "ru": "оценка из 10"},
    "no_grade": {"en": "no grade of 10 given", "ru": "оценка из 10 не указана"},
    "by_film_in_train": {"en": "film seen in training", "ru": "фильм есть в обучении"},
}

EVIDENCE_NOTES = {
    "note_intervals": {
        "en": "[a, b] is the 95% interval of the mean: the test reviews are resampled 10,000 times "
        "(bootstrap), and the chance of training enters by the deviation between seeds "
        "(Student's t), where there are several.",
        "ru": "[a; b] — 95-процентный интервал среднего: тестовые отзывы перевыбираются 10 000 раз "
        "(бутстрэп), а случайность обучения входит через отклонение между seed (распределение "
        "Стьюдента), если их несколько.",
    },
    "note_groups": {
        "en": "The split keeps films (or authors) whole, so whole ones are resampled, and in "
        "McNemar's test whole ones change sides: {count} of them are in the test set.",
        "ru": "Разбиение не делит фильмы (или авторов), поэтому они перевыбираются целиком и в "
        "критерии Макнемара меняются сторонами целиком: в тестовой выборке их {count}.",
    },
    "note_pairs": {
        "en": "Two approaches are compared on the same reviews; runs with the same seeds are "
        "matched, others drawn apart. McNemar's test asks whether these very runs differ; of "
        "several pairs of runs, p is twice their median. p (Holm) is corrected over all pairs.",
        "ru": "Два подхода сравниваются на одних и тех же отзывах; запуски с одинаковыми seed "
        "сопоставляются, прочие перебираются независимо. Критерий Макнемара проверяет, различаются "
        "ли именно эти запуски; для нескольких пар запусков p — удвоенная медиана. p (Холм) — с "
        "поправкой на все пары.",
    },
    "note_calibration": {
        "en": "Temperature and threshold are fitted on validation reviews; the results above use "
        "neither.",
        "ru": "Температура и порог подобраны на валидационных отзывах; в результатах выше они не "
        "используются.",
    },
    "note_slices": {
        "en": "The intervals of parts hold the chance of reviews alone: Wilson's for accuracy, the "
        "bootstrap's for F1, which has no width where every answer is right: read accuracy's "
        "there. They are not corrected for their number.",
        "ru": "Интервалы на частях учитывают только случайность отзывов: Уилсона для accuracy, "
        "бутстрэп для F1; у него нет ширины, где верны все ответы: там смотрите accuracy. Поправки "
        "на их число нет.",
    },
    "note_truncated": {
        "en": "How much of a review is cut off depends on the approach's tokens, so those parts "
        "hold other reviews in each column.",
        "ru": "Сколько от отзыва обрезано, зависит от токенов подхода, поэтому в этих частях у "
        "каждого столбца свои отзывы.",
    },
    "note_no_predictions": {
        "en": "{names}: without predictions.parquet (seeds {detail}), so without intervals and "
        "comparisons; train again to have them.",
        "ru": "{names}: нет predictions.parquet (seed {detail}), поэтому нет интервалов и "
        "сравнений; обучите заново, чтобы их получить.",
    },
    "note_own_mismatch": {
        "en": "{names}: its runs answered other test reviews than one another ({detail}), so "
        "intervals and comparisons are left out.",
        "ru": "{names}: его запуски отвечали на разные тестовые отзывы ({detail}), поэтому "
        "интервалов и сравнений нет.",
    },
    "note_unpaired": {
        "en": "{names}: not the same test reviews ({detail}), so they are compared unpaired, as "
        "two independent samples.",
        "ru": "{names}: не одни и те же тестовые отзывы ({detail}), поэтому сравнение без пар, "
        "как двух независимых выборок.",
    },
    "note_other_classes": {
        "en": "{names}: not the same classes, so they are not compared.",
        "ru": "{names}: разные классы, поэтому не сравниваются.",
    },
    "reason_rows": {"en": "other rows", "ru": "другие строки"},
    "reason_labels": {"en": "other labels on the same rows", "ru": "другие метки тех же строк"},
    "reason_classes": {"en": "other classes", "ru": "другие классы"},
    "note_no_slice": {
        "en": "Not recorded with the predictions, so without a table of parts: {facts}.",
        "ru": "Не записано вместе с предсказаниями, поэтому без разбиения: {facts}.",
    },
}
