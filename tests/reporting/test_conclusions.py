"""Test verdicts, conclusions and recommendations without a store."""

from __future__ import annotations

from dataclasses import replace

import pytest
from report_rows import one_table, trained

from kinopoisk_ft.reporting.conclusions import conclusions, recommendations
from kinopoisk_ft.reporting.frames import verdicts
from kinopoisk_ft.reporting.locale import LANGUAGES, Locale
from kinopoisk_ft.reporting.notes import table_notes

EN = Locale("en")


@pytest.mark.parametrize(
    ("skill", "words", "group"),
    [
        (3.0, "as good within 0.02: 95% interval", "As good within 0.02: bert; of these"),
        (1.2, "worse by more than 0.02: 95% interval", "Worse by more than 0.02: bert."),
        (2.8, "undecided at a margin of 0.02: 95% interval", "Undecided: bert."),
    ],
)
def test_each_verdict_has_its_words(skill: float, words: str, group: str) -> None:
    runs = [trained(m, seed=s, test_f1_weighted=f) for m, f in (("bert", 0.9), ("gru", 0.91))
            for s in range(3)]  # fmt: skip
    table = one_table(*runs, answered={"bert": [skill] * 3, "gru": [3.05] * 3})
    assert words in " ".join(conclusions(table, EN))
    assert group in recommendations(table, EN)[-1]


def test_what_would_decide_is_said() -> None:
    """The table has one decision, with 300 test reviews and one seed."""
    runs = [trained(), trained("gru", test_f1_weighted=0.91)]
    table = one_table(*runs, answered={"bert": [1.5], "gru": [3.0]})
    (decision,) = table.decisions[0.02].values()
    (pair,) = table.comparison.pairs
    for reviews, seeds, needed in (
        (
            2.0,
            3.0,
            f"additional test reviews needed: about {pair.reviews}; or additional seeds: about 2",
        ),
        (2.0, None, f"additional test reviews needed: about {pair.reviews}"),
        (None, 3.0, "additional seeds needed: about 2"),
        (None, None, "neither more test reviews nor more seeds alone would decide"),
    ):
        weak = replace(decision, verdict="undecided", more_reviews=reviews, more_seeds=seeds)
        doubtful = replace(table, decisions={0.02: {"bert": weak}, 0.01: {"bert": weak}})
        said = conclusions(doubtful, EN)[1]
        assert needed in said
        assert "one seed, so this holds for these runs and not for other trainings" in said
        assert "Undecided: bert." in recommendations(doubtful, EN)[-1]


def test_what_has_not_learned_takes_no_part() -> None:
    """This holds even with the highest score and the shortest time."""
    lucky = trained("mamba", test_f1_weighted=0.99, train_seconds=0.1, not_learned="training loss")
    table = one_table(trained(), trained("gru", test_f1_weighted=0.91), lucky)
    assert [row.name for row in table.rows] == ["gru", "bert", "mamba"]
    said = " ".join([*conclusions(table, EN), *recommendations(table, EN)])
    assert "mamba" not in said
    assert table.best["f1_weighted"] == 0.91
    assert verdicts(table, table.rows[-1], EN) == ["not learned", "not learned"]
    alone = one_table(replace(trained(), not_learned="test"), lucky)
    assert conclusions(alone, EN)[-1] == "No approach has learned, so nothing can be concluded."
    assert recommendations(alone, EN) == []


def test_without_predictions_chance_is_not_measured() -> None:
    table = one_table(trained(), trained("gru", test_f1_weighted=0.95))
    assert "chance was not measured" in conclusions(table, EN)[1]
    notes = " ".join(table_notes(table, EN))
    assert "bert: no predictions.parquet (seeds 0)" in notes
    assert "As good" not in recommendations(table, EN)[-1]


@pytest.mark.parametrize("language", LANGUAGES)
def test_against_full_training_what_is_unequal_is_named(language: str) -> None:
    locale = Locale(language)
    common = {"trainer.epochs": "2", "trainer.batch_size": "16", "trainer.patience": "None"}
    full, even = trained(settings=common), trained("bert", "freeze", settings=common)
    changes = {"trainer.epochs": "5", "trainer.batch_size": "8", "trainer.patience": "3",
               "data.max_length": "64", "trainer.eval_every": "20"}  # fmt: skip
    longer = trained("bert", "lora", settings=changes, searched="experiment=best")
    said = conclusions(one_table(full, even, longer), locale)
    ours, others = (
        [line for line in said if line.startswith(f"{name} ") and "(bert):" in line]
        for name in ("bert + LoRA", "bert + freeze")
    )
    budgets = locale("budgets", differences="").partition("(")[0]
    assert budgets in ours[0]
    assert budgets not in others[0]
    for key, parts in {"trainer.epochs": "5 / 2", "trainer.batch_size": "8 / 16",
                       "trainer.patience": "3 / -", "data.max_length": "64 / 256",
                       "trainer.eval_every": "20 / -",
                       "search": "experiment=best / -"}.items():  # fmt: skip
        assert f"{locale(key)} {parts}" in ours[0]


def test_tfidf_may_be_the_best() -> None:
    table = one_table(trained(), trained("tfidf", test_f1_weighted=0.95, train_seconds=2.0))
    said = conclusions(table, EN)
    assert "No network measured higher than the TF-IDF baseline." in said
    assert "TF-IDF also trains fastest, 2.00 s." in said


def test_a_single_approach_has_nothing_to_compare() -> None:
    table = one_table(trained())
    said = " ".join(conclusions(table, EN))
    assert "bert is the only approach here" in said
    assert "Every approach was trained with one seed" in said
    assert recommendations(table, EN) == []


def test_networks_from_random_weights_are_compared_with_each_other() -> None:
    scratch = {"settings": {"model.vocab_size": "8000"}}
    runs = [trained("encoder", test_f1_weighted=0.94), trained("mamba_scratch", **scratch)]
    alone = one_table(*runs)
    assert "network with the highest F1 (encoder)" in conclusions(alone, EN)[-1]
    table = one_table(*runs, trained("bert_scratch", test_f1_weighted=0.91, **scratch))
    last = conclusions(table, EN)[-1]
    assert "random initial weights that has the highest F1 (bert_scratch)" in last
    note = next(note for note in table_notes(table, EN) if "random weights" in note)
    assert "bert_scratch and mamba_scratch" in note
    assert "encoder" not in note


def test_rivals_are_named_without_times() -> None:
    runs = [trained(model, test_f1_weighted=f1) for model, f1 in (("bert", 0.91), ("gru", 0.9))]
    runs = [replace(run, metrics=run.metrics.copy()) for run in runs]
    for run in runs:
        run.metrics.pop("train_seconds")
    table = one_table(*runs, answered={"bert": [3.0], "gru": [3.0]})
    assert "As good within 0.02: gru. Repeat" in recommendations(table, EN)[-1]
