"""Test verdicts, conclusions and recommendations without a store."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from report_rows import one_table, trained
from report_store import answers

from kinopoisk_ft.reporting import frames
from kinopoisk_ft.reporting.conclusions import answer, choices, conclusions
from kinopoisk_ft.reporting.frames import verdicts
from kinopoisk_ft.reporting.locale import LANGUAGES, Locale
from kinopoisk_ft.reporting.notes import table_notes
from kinopoisk_ft.reporting.table import Table, tables
from kinopoisk_ft.statistics.predictions import Predictions

EN = Locale("en")
NBSP = "\N{NO-BREAK SPACE}"


def recommendations(table: Table) -> list[str]:
    return [choice.text for choice in choices(table, EN)]


@pytest.mark.parametrize(
    ("skill", "words", "group"),
    [
        (3.0, "as good at a margin of 0.02; 95% bounds", "As good at a margin of 0.02: bert."),
        (1.2, "worse by more than 0.02; 95% bounds", "Worse by more than 0.02: bert."),
        (2.8, "undecided at a margin of 0.02; 95% bounds", "Undecided: bert."),
    ],
)
def test_each_verdict_has_its_words(skill: float, words: str, group: str) -> None:
    runs = [trained(m, seed=s, test_f1_weighted=f) for m, f in (("bert", 0.9), ("gru", 0.91))
            for s in range(3)]  # fmt: skip
    table = one_table(*runs, answered={"bert": [skill] * 3, "gru": [3.05] * 3})
    assert words in " ".join(conclusions(table, EN))
    assert group in recommendations(table)[-1]


def test_what_would_decide_is_said() -> None:
    """The table has one decision, with 300 test reviews."""
    runs = [trained(), trained("gru", test_f1_weighted=0.91)]
    table = one_table(*runs, answered={"bert": [1.5], "gru": [3.0]})
    (decision,) = table.decisions[0.02].values()
    (pair,) = table.comparison.pairs
    reviews = f"needed for a verdict: additional test reviews (at least {pair.reviews})"
    seeds = "additional seeds of each approach (at least 1)"
    for factor, more, measured, needed in (
        (2.0, 1, True, f"{reviews} or {seeds})"),
        (2.47, 1, True, "needed for a verdict: additional test reviews (at least 890) or"),
        (2.0, None, True, f"{reviews}; even 100 times as many seeds would not be enough)"),
        (2.0, None, False, f"{reviews}; how many seeds is unknown, because an approach has only"),
        (None, 1, True, f"needed for a verdict: {seeds}; with so few seeds, more test reviews"),
        (None, None, True, "neither 100 times as many test reviews nor 100 times as many seeds"),
        (None, None, False, "even 100 times as many test reviews would not be enough for a"),
    ):
        weak = replace(decision, verdict="undecided", more_reviews=factor, more_seeds=more)
        found = replace(table.comparison, pairs=(replace(pair, measured=measured),))
        decisions = {0.02: {"bert": weak}, 0.01: {"bert": weak}}
        doubtful = replace(table, comparison=found, decisions=decisions)
        assert f"; {needed}" in conclusions(doubtful, EN)[0]
        assert conclusions(doubtful, Locale("ru"))
        assert "do not show whether its lead over bert is smaller or larger than 0.02" in answer(
            doubtful, EN
        )
        assert "Undecided: bert." in recommendations(doubtful)[-1]


def test_one_difference_has_one_interval() -> None:
    """Verdicts have the bounds of the decision; other pairs have their interval in one table."""
    skills = {"bert": 3.05, "gru": 2.8, "bert + lora": 2.0}
    runs = [trained("bert", test_f1_weighted=0.92), trained("gru", test_f1_weighted=0.91),
            trained("bert", "lora", test_f1_weighted=0.9)]  # fmt: skip
    table = one_table(*runs, answered={name: [skill] for name, skill in skills.items()})
    decisions = table.decisions[0.02]
    said = " ".join([*conclusions(table, EN), *recommendations(table)])
    low, high = (EN.score(v, signed=True) for v in (decisions["gru"].low, decisions["gru"].high))
    assert f"95% bounds {low} and {high}" in said
    known = {(EN.score(d.low, signed=True), EN.score(d.high, signed=True))
             for d in decisions.values()}  # fmt: skip
    assert set(re.findall(r"95% bounds (\S+) and ([^\s;)]+)", said)) <= known
    assert list(frames.differences(table, EN).iloc[:, 0]) == ["bert + LoRA − gru"]
    assert [row[0] for row in frames.from_best(table, EN).to_numpy()] == [
        "gru − bert", "bert + LoRA − bert"
    ]  # fmt: skip


def test_other_classes_are_not_called_missing_predictions() -> None:
    runs = [trained(), trained("gru", test_f1_weighted=0.91)]
    frames = [answers(0, 3.0), answers(0, 2.0).rename(columns={"p_Bad": "p_A", "p_Good": "p_B"})]
    found = {
        run.run_id: Predictions.of(frame, run.run_id)
        for run, frame in zip(runs, frames, strict=True)
    }
    (table,) = tables(runs, found)
    assert "predictions that can be compared" in conclusions(table, EN)[0]
    assert "predictions that can be compared" in answer(table, EN)


def test_films_that_are_not_shared_say_nothing_of_a_guess() -> None:
    leakage = {"leakage_film_guess_accuracy": 0.68, "leakage_majority_accuracy": 0.68,
               "leakage_authors_share": 0.26}  # fmt: skip
    for share, told in ((0.0, False), (0.4, True)):
        runs = [trained(leakage_films_share=share, **leakage), trained("gru")]
        said = " ".join(conclusions(one_table(*runs), EN))
        assert ("most common training label of each film" in said) == told
        assert "26% of the authors of the test set also wrote training reviews." in said


def test_what_has_not_learned_takes_no_part() -> None:
    """This holds even with the highest score and the shortest time."""
    lucky = trained("mamba", test_f1_weighted=0.99, train_seconds=0.1, not_learned="training loss")
    table = one_table(trained(), trained("gru", test_f1_weighted=0.91), lucky)
    assert [row.name for row in table.rows] == ["gru", "bert", "mamba"]
    said = " ".join([*conclusions(table, EN), *recommendations(table)])
    assert "mamba" not in said
    assert table.best["f1_weighted"] == 0.91
    assert verdicts(table, table.rows[-1], EN) == ["not learned", "not learned"]
    alone = one_table(replace(trained(), not_learned="test"), lucky)
    assert conclusions(alone, EN)[-1] == "No approach has learned, so nothing can be concluded."
    assert answer(alone, EN) == conclusions(alone, EN)[-1]
    assert recommendations(alone) == []
    assert [table.verdict(row) for row in table.rows] == ["reference", "", "not_learned"]


@pytest.mark.parametrize("language", LANGUAGES)
def test_trials_of_a_search_are_not_ranked_by_test_score(language: str) -> None:
    locale = Locale(language)
    runs = [
        trained(searched="trial", settings={"trainer.lr": lr}, test_f1_weighted=f1)
        for lr, f1 in (("1", 0.9), ("2", 0.91))
    ]
    table = one_table(*runs)
    assert answer(table, locale) == locale("only_trials")
    assert conclusions(table, locale) == [locale("only_trials")]
    assert choices(table, locale) == []
    assert choices(one_table(*runs, trained("gru")), locale)


def test_without_predictions_chance_is_not_measured() -> None:
    table = one_table(trained(), trained("gru", test_f1_weighted=0.95))
    assert "not tested: there are no predictions" in conclusions(table, EN)[0]
    assert "its lead over bert is due to chance was not tested, because" in answer(table, EN)
    notes = " ".join(table_notes(table, EN))
    assert "bert: no predictions.parquet (seeds 0)" in notes
    assert "As good" not in recommendations(table)[-1]


def test_an_untested_approach_is_named_if_the_others_are_tested() -> None:
    runs = [trained("gru", test_f1_weighted=0.95), trained(), trained("lstm")]
    table = one_table(*runs, answered={"gru": [3.0], "bert": [1.2]})
    assert "its lead over lstm is due to chance was not tested, because" in answer(table, EN)
    assert answer(table, Locale("ru")).endswith("предсказаний, которые можно сравнить: lstm.")


@pytest.mark.parametrize(
    ("skill", "seconds", "said"),
    [
        (3.0, 50.0, "Take bert: it is as good as gru (weighted F1 0.900 against 0.910, margin "
         "0.02) "
         "and trains in 50.0\N{NO-BREAK SPACE}s instead of 100.0\N{NO-BREAK SPACE}s."),
        (3.0, 200.0, "Take gru: it has the highest weighted F1, 0.910. None of the approaches "
         "that are as good saves more than 10% of the training time."),
        (3.0, 99.0, "Take gru: it has the highest weighted F1, 0.910. None of the approaches"),
        (1.2, 50.0, "Take gru: it has the highest weighted F1, 0.910, and all others are worse by"),
        (2.8, 50.0, "No approach is recommended: gru has the highest weighted F1, 0.910, but"),
    ],
)  # fmt: skip
def test_the_answer_follows_the_verdict(skill: float, seconds: float, said: str) -> None:
    runs = [trained(m, seed=s, test_f1_weighted=f, train_seconds=t)
            for m, f, t in (("bert", 0.9, seconds), ("gru", 0.91, 100.0))
            for s in range(3)]  # fmt: skip
    table = one_table(*runs, answered={"bert": [skill] * 3, "gru": [3.05] * 3})
    assert answer(table, EN).startswith(said)


def test_names_and_counts_of_undecided_approaches_fit_the_russian_sentence() -> None:
    """Neither "остальные" nor a count can be inflected, so they follow a colon."""
    models = {"bert": 0.94, "gru": 0.93, "lstm": 0.92, "cnn": 0.91}
    for others, words in ((1, "gru"), (2, "gru и lstm"), (3, "остальные")):
        named = dict(list(models.items())[: others + 1])
        runs = [trained(name, test_f1_weighted=f1) for name, f1 in named.items()]
        skills = {name: [3.05 if name == "bert" else 2.8] for name in named}
        table = one_table(*runs, answered=skills)
        said = answer(table, Locale("ru"))
        assert said.startswith("Рекомендации нет: наибольшая взвешенная F1 у bert (0,940)")
        assert said.endswith(f" Под вопросом: {words}.")


def test_tfidf_may_be_the_best() -> None:
    table = one_table(trained(), trained("tfidf", test_f1_weighted=0.95, train_seconds=2.0))
    assert "No network has a higher weighted F1 than the TF-IDF baseline." in conclusions(table, EN)
    assert recommendations(table)[0].startswith("Little time: TF-IDF trains fastest, in 2.00")


def test_tfidf_is_compared_only_with_networks_that_are_there() -> None:
    runs = [trained("tfidf", settings={"data.max_characters": limit}) for limit in ("900", "None")]
    assert "network" not in " ".join(conclusions(one_table(*runs), EN))


def test_a_single_approach_has_nothing_to_compare() -> None:
    table = one_table(trained())
    said = " ".join(conclusions(table, EN))
    assert "bert is the only approach that has learned" in said
    assert answer(table, EN) in said
    assert recommendations(table) == []


def test_networks_from_random_weights_are_compared_with_each_other() -> None:
    scratch = {"settings": {"model.vocab_size": "8000"}}
    runs = [trained("encoder", test_f1_weighted=0.94), trained("mamba_scratch", **scratch)]
    alone = one_table(*runs)
    assert "the best other network (encoder)" in conclusions(alone, EN)[-1]
    table = one_table(*runs, trained("bert_scratch", test_f1_weighted=0.91, **scratch))
    last = conclusions(table, EN)[-1]
    assert "best other network trained from random weights (bert_scratch)" in last
    best = trained("gru_scratch", test_f1_weighted=0.99, **scratch)
    pretrained = one_table(runs[0], trained("mamba"), best)
    assert "the best other pretrained network (encoder)" in conclusions(pretrained, EN)[-1]
    note = next(note for note in table_notes(table, EN) if "random weights" in note)
    assert "bert_scratch and mamba_scratch" in note
    assert "encoder" not in note


def test_rivals_are_named_without_times() -> None:
    runs = [trained(model, test_f1_weighted=f1) for model, f1 in (("bert", 0.91), ("gru", 0.9))]
    runs = [replace(run, metrics=run.metrics.copy()) for run in runs]
    for run in runs:
        run.metrics.pop("train_seconds")
    table = one_table(*runs, answered={"bert": [3.0], "gru": [3.0]})
    assert recommendations(table)[-1].endswith("As good at a margin of 0.02: gru.")


@pytest.mark.parametrize("key", ["model.name", "model.revision"])
def test_full_fine_tuning_of_another_checkpoint_says_nothing_about_an_adapter(key: str) -> None:
    large, tiny = ({key: name} for name in ("large", "tiny"))
    runs = [
        trained("encoder", test_f1_weighted=0.95, settings=large),
        trained("encoder", test_f1_weighted=0.91, settings=tiny),
        trained("encoder", "lora", settings=tiny),
    ]
    said = " ".join(conclusions(one_table(*runs), EN))
    name = key.rpartition(".")[2]
    assert f"encoder + LoRA against full fine-tuning (encoder ({name}=tiny))" in said
    assert "against full fine-tuning" not in " ".join(conclusions(one_table(*runs[::2]), EN))
