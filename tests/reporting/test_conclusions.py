"""Verdicts, conclusions and recommendations, without a store."""

from __future__ import annotations

from dataclasses import replace

import pytest
from report_rows import one_table, trained

from kinopoisk_ft.reporting.conclusions import conclusions, recommendations
from kinopoisk_ft.reporting.locale import LANGUAGES, Locale
from kinopoisk_ft.reporting.notes import table_notes

EN = Locale("en")


@pytest.mark.slow
def test_noise_is_called_noise() -> None:
    runs = [trained(m, seed=s, test_f1_weighted=f) for m, f in (("bert", 0.9), ("gru", 0.91))
            for s in range(3)]  # fmt: skip
    for skill, verdict in (
        (3.0, "no significant difference: 95% interval"),
        (1.5, "beyond chance"),
    ):
        table = one_table(*runs, answered={"bert": [skill] * 3, "gru": [3.05] * 3})
        said = " ".join(conclusions(table, EN))
        assert verdict in said
        rivals = "No significant difference from it: bert" in " ".join(recommendations(table, EN))
        assert rivals == (skill == 3.0)
    pair = table.comparison.pair("gru", "bert")
    assert pair is not None
    assert not pair.differences["f1_weighted"].holds_zero


def test_what_holm_takes_back_is_not_called_real() -> None:
    """The interval leaves out zero, and the correction for many comparisons takes that back."""
    runs = [trained(), trained("gru", test_f1_weighted=0.91)]
    table = one_table(*runs, answered={"bert": [1.5], "gru": [3.0]})
    (pair,) = table.comparison.pairs
    assert pair.beyond_chance
    weak = replace(pair.differences["f1_weighted"], p=0.03, p_holm=0.3)
    doubtful = replace(pair, differences={**pair.differences, "f1_weighted": weak})
    comparison = replace(table.comparison, pairs=(doubtful,))
    table = replace(table, comparison=comparison)
    said = conclusions(table, EN)[1]
    assert "no significant difference after Holm's correction for 1 comparisons: p 0.300" in said
    assert "one seed, so this holds for these runs and not for other trainings" in said
    assert "No significant difference from it: bert" in recommendations(table, EN)[-1]


def test_without_predictions_chance_is_not_measured() -> None:
    table = one_table(trained(), trained("gru", test_f1_weighted=0.95))
    assert "chance was not measured" in conclusions(table, EN)[1]
    notes = " ".join(table_notes(table, EN))
    assert "bert: no predictions.parquet (seeds 0)" in notes
    assert "No significant difference" not in recommendations(table, EN)[-1]


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
        for name in ("bert + lora", "bert + freeze")
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
    assert "tfidf also trains fastest, 2.00 s." in said


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
    assert "No significant difference from it: gru. Repeat" in recommendations(table, EN)[-1]
