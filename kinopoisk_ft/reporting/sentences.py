"""The sentences of conclusions and recommendations, in English and in Russian."""

from __future__ import annotations

SENTENCES = {
    "one_seed": {
        "en": "Every approach was measured with one seed: nothing below measures the chance of "
        "training.",
        "ru": "Каждый подход измерен с одним seed: случайность обучения ниже нигде не измерена.",
    },
    "verdict_none": {
        "en": " (chance was not measured: no comparison of predictions)",
        "ru": " (случайность не измерена: предсказания не сравнивались)",
    },
    "verdict_noise": {
        "en": " (not told apart: 95% interval from {low} to {high}{scope})",
        "ru": " (не различимы: 95-процентный интервал от {low} до {high}{scope})",
    },
    "verdict_uncorrected": {
        "en": " (not told apart after Holm's correction for {pairs} comparisons: p {p}, 95% "
        "interval from {low} to {high}{scope})",
        "ru": " (не различимы с поправкой Холма на число сравнений, {pairs}: p {p}, 95-процентный "
        "интервал от {low} до {high}{scope})",
    },
    "verdict_beyond": {
        "en": " (beyond chance: 95% interval from {low} to {high}, Holm-corrected p {p}{scope})",
        "ru": " (больше случайного: 95-процентный интервал от {low} до {high}, p с поправкой "
        "Холма {p}{scope})",
    },
    "scope_reviews": {
        "en": "; one seed, so of these runs and not of training",
        "ru": "; один seed, поэтому речь об этих запусках, а не об обучении",
    },
    "only": {
        "en": "{name} is the only approach here (weighted F1 {f1}): there is nothing to compare.",
        "ru": "{name} — единственный подход (взвешенная F1 {f1}): сравнивать не с чем.",
    },
    "best": {
        "en": "{name} has the highest weighted F1 measured, {f1}; the next, {second}, has {delta} "
        "against it{verdict}.",
        "ru": "Наибольшая измеренная взвешенная F1 у {name}: {f1}; у следующего, {second}, "
        "разница с ним {delta}{verdict}.",
    },
    "above_majority": {
        "en": "{name} against always answering the majority class (weighted F1 {f1}): {delta}.",
        "ru": "{name} по сравнению с ответом «всегда самый частый класс» (взвешенная F1 {f1}): "
        "{delta}.",
    },
    "above_tfidf": {
        "en": "{name} against the TF-IDF baseline (weighted F1 {f1}): {delta}{verdict}.",
        "ru": "{name} по сравнению с базовой моделью TF-IDF (взвешенная F1 {f1}): "
        "{delta}{verdict}.",
    },
    "tfidf_best": {
        "en": "No network measured higher than the TF-IDF baseline.",
        "ru": "Ни у одной нейросети измеренная F1 не выше, чем у базовой модели TF-IDF.",
    },
    "fastest": {
        "en": "{name} trains fastest, {time} s against {best_time} s of {best}; weighted F1 "
        "against {best}: {delta}{verdict}.",
        "ru": "Быстрее всех обучается {name}: {time} с, {best} — {best_time} с; взвешенная F1 "
        "по сравнению с {best}: {delta}{verdict}.",
    },
    "fastest_is_best": {
        "en": "{name} also trains fastest, {time} s.",
        "ru": "{name} и обучается быстрее всех: {time} с.",
    },
    "fastest_network": {
        "en": "Of the networks {name} trains fastest, {time} s; weighted F1 against {best}: "
        "{delta}{verdict}.",
        "ru": "Из нейросетей быстрее всех обучается {name}: {time} с; взвешенная F1 по сравнению "
        "с {best}: {delta}{verdict}.",
    },
    "against_full": {
        "en": "{name} against full training ({other}): {facts}.",
        "ru": "{name} по сравнению с полным обучением ({other}): {facts}.",
    },
    "mamba": {
        "en": "Mamba ({name}) against the other network with the highest F1 ({other}): {facts}.",
        "ru": "Mamba ({name}) по сравнению с другой нейросетью, у которой F1 наибольшая ({other}): "
        "{facts}.",
    },
    "mamba_from_scratch": {
        "en": "Mamba ({name}) against the other network with random initial weights that has the "
        "highest F1 ({other}): {facts}.",
        "ru": "Mamba ({name}) по сравнению с другой нейросетью со случайными начальными весами, у "
        "которой F1 наибольшая ({other}): {facts}.",
    },
    "fact_trainable_parameters": {
        "en": "{a} trainable parameters instead of {b} ({change} of them)",
        "ru": "обучаемых параметров {a} вместо {b} ({change} от них)",
    },
    "fact_train_seconds": {
        "en": "training {a} s instead of {b} s ({change})",
        "ru": "обучение {a} с вместо {b} с ({change})",
    },
    "fact_eval_seconds": {
        "en": "evaluation {a} s instead of {b} s ({change})",
        "ru": "оценка {a} с вместо {b} с ({change})",
    },
    "fact_f1": {
        "en": "weighted F1 {delta}{verdict}",
        "ru": "взвешенная F1 {delta}{verdict}",
    },
    "budgets": {
        "en": "Their budgets differ ({differences}): this is no comparison at equal cost.",
        "ru": "Условия различаются ({differences}): это не сравнение при равных затратах.",
    },
    "limit_time": {
        "en": "Little time: {name}, {cost} of training, weighted F1 {f1}{from_best}.",
        "ru": "Мало времени: {name}, обучение {cost}, взвешенная F1 {f1}{from_best}.",
    },
    "limit_parameters": {
        "en": "Few parameters to train: {name} has the fewest, {cost}; weighted F1 "
        "{f1}{from_best}.",
        "ru": "Обучать мало параметров: меньше всего их у {name}, {cost}; взвешенная F1 "
        "{f1}{from_best}.",
    },
    "limit_memory": {
        "en": "Little memory: {name} has the lowest peak, {cost}; weighted F1 {f1}{from_best}.",
        "ru": "Мало памяти: наименьший пик у {name}, {cost}; взвешенная F1 {f1}{from_best}.",
    },
    "limit_network": {
        "en": "If it has to be a network: {name}, {cost}, weighted F1 {f1}{from_best}.",
        "ru": "Если нужна нейросеть: {name}, {cost}, взвешенная F1 {f1}{from_best}.",
    },
    "cost_time": {"en": "{value} s", "ru": "{value} с"},
    "cost_parameters": {"en": "{value}", "ru": "{value}"},
    "cost_memory": {"en": "{value} MB", "ru": "{value} МБ"},
    "leakage_said": {
        "en": "What the split leaks: {share} of the test set's films are in training too; "
        "answering each film's usual label gives accuracy {guess}, the majority class {majority}.",
        "ru": "Что выдаёт разбиение: {share} фильмов тестовой выборки есть и в обучении; ответ "
        "обычной меткой фильма даёт accuracy {guess}, самый частый класс — {majority}.",
    },
    "pretraining_said": {
        "en": "The base of {name} was pretrained on {count} of the test reviews ({share}): its "
        "scores may be flattered.",
        "ru": "База {name} предобучена в том числе на тестовых отзывах: {count} ({share}); "
        "оценки могут быть завышены.",
    },
    "limit_quality": {
        "en": "Quality first: {name}, weighted F1 {f1}, accuracy {accuracy}.",
        "ru": "Главное — качество: {name}, взвешенная F1 {f1}, accuracy {accuracy}.",
    },
    "rivals": {
        "en": "Not told apart from it: {names}{fastest}.",
        "ru": "От него не отличить: {names}{fastest}.",
    },
    "rivals_fastest": {
        "en": "; of all these {name} trains fastest, {time} s",
        "ru": "; из них всех быстрее обучается {name}: {time} с",
    },
    "no_rivals": {
        "en": "Every other approach measured lower, beyond chance (Holm-corrected).",
        "ru": "У всех остальных F1 ниже, и больше случайного (с поправкой Холма).",
    },
    "from_best": {
        "en": "; against {best} {delta}{verdict}",
        "ru": "; разница с {best} {delta}{verdict}",
    },
    "more_seeds": {
        "en": "Repeat with several seeds (seed=0,1,2) before relying on the order.",
        "ru": "Прежде чем полагаться на порядок, повторите с несколькими seed (seed=0,1,2).",
    },
    "more_seeds_for": {
        "en": "Before relying on the place of {names}, repeat with several seeds (seed=0,1,2).",
        "ru": "Прежде чем полагаться на место {names}, повторите с несколькими seed (seed=0,1,2).",
    },
}
