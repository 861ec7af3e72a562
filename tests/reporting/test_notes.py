"""Test notes about unequal, missing or doubtful values in a table."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from report_rows import one_table, trained
from report_store import answers

from kinopoisk_ft.reporting.conclusions import conclusions
from kinopoisk_ft.reporting.locale import LANGUAGES, Locale
from kinopoisk_ft.reporting.notes import caveats, table_notes
from kinopoisk_ft.reporting.table import Table, tables
from kinopoisk_ft.statistics.predictions import Predictions

EN, RU = Locale("en"), Locale("ru")


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_needed_numbers_are_called_minimums(language: str) -> None:
    """In benchmarks/results/verdicts.md, they decide fewer than 80% of most simulated studies."""
    note = Locale(language)("note_verdicts", margin="0.02")
    assert {"en": "are minimums", "ru": "минимальные"}[language] in note
    assert {"en": "the probability was lower", "ru": "вероятность была ниже"}[language] in note


def test_unequal_budgets_are_said_in_words() -> None:
    common = {"trainer.epochs": "2", "trainer.batch_size": "16", "data.strip_scores": "False"}
    changes = {
        "data.truncation": "tail", "data.strip_scores": "True", "data.max_characters": "900",
        "trainer.epochs": "5", "trainer.max_steps": "70", "trainer.batch_size": "8",
        "trainer.class_weights": "balanced", "trainer.sampling": "balanced",
        "trainer.eval_every": "20", "trainer.patience": "3",
    }  # fmt: skip
    for key, value in changes.items():
        other = trained("gru", settings={**common, key: value})
        table = one_table(trained(settings=common), other, trained("tfidf", settings=common))
        for language in LANGUAGES:
            locale = Locale(language)
            notes = [*table_notes(table, locale), *(one.text for one in caveats(table, locale))]
            (said,) = [note for note in notes if locale(key) in note]
            assert f"{locale.setting(value)} (gru)" in said
            assert ("TF-IDF" in said) == (key in ("data.strip_scores", "data.max_characters"))
    even = one_table(trained(settings=common), trained("gru", settings=common))
    assert "Different " not in " ".join(table_notes(even, EN))


def test_rows_that_differ_in_much_get_a_number_and_a_note() -> None:
    many = {"trainer.epochs": "1", "trainer.batch_size": "8", "adapter.lr": "0.1"}
    table = one_table(trained(), trained(seed=1, settings=many))
    assert {row.name for row in table.rows} == {"bert #1", "bert #2"}
    assert "bert #2: adapter.lr=0.1, trainer.batch_size=8, trainer.epochs=1." in table_notes(
        table, EN
    )


def test_notes_name_unequal_devices_and_unequal_data() -> None:
    runs = [trained(), trained("gru", device="cuda", majority_f1_weighted=0.6)]
    notes = " ".join(table_notes(one_table(*runs), EN))
    assert 'Different values of "device": cpu (bert); cuda (gru).' in notes
    assert "so the same row numbers stand for different data" in notes


@pytest.mark.parametrize("language", LANGUAGES)
def test_unequal_precision_is_named(language: str) -> None:
    locale = Locale(language)
    full, same = trained(precision="bf16"), trained("bert", "freeze", precision="bf16")
    lora = [trained("bert", "lora", seed=s, precision=p) for s, p in enumerate(("bf16", "fp32"))]
    table = one_table(full, same, *lora, trained("tfidf", precision="fp64"))
    (said,) = [note for note in table_notes(table, locale) if locale("precision") in note]
    assert "bf16, fp32 (bert + LoRA)" in said
    assert "fp64" not in said
    # The seeds of one approach may differ, too.
    assert any("bf16, fp32 (bert + LoRA)" in note for note in table_notes(one_table(*lora), locale))
    even = table_notes(one_table(full, same), locale)
    assert not any(locale("precision") in note for note in even)


def test_times_that_one_recipe_does_not_explain_are_doubted() -> None:
    for seconds, doubted in (((100.0, 140.0), False), ((100.0, 900.0), True)):
        runs = [trained(seed=i, train_seconds=s) for i, s in enumerate(seconds)]
        notes = " ".join(table_notes(one_table(*runs), EN))
        assert ("vary from 100.0 to 900.0 s between seeds" in notes) == doubted
    # The table contains the time to fill the cache, and with it, these times are almost the same.
    runs = [trained(seed=i, train_seconds=s) for i, s in enumerate((2.0, 4.0))]
    for run in runs:
        run.metrics["prefix_build_seconds"] = 100.0
    assert "training times vary" not in " ".join(table_notes(one_table(*runs), EN))


def test_majority_scores_of_versions_that_rounded_to_single_precision_agree() -> None:
    score = 0.5542123456789
    rounded = float(np.float32(score))
    runs = [trained(majority_f1_weighted=score), trained("gru", majority_f1_weighted=rounded)]
    assert not one_table(*runs).majority_differs


@pytest.mark.parametrize("language", LANGUAGES)
def test_subsets_of_the_training_reviews_may_have_other_majority_classes(language: str) -> None:
    """The majority class of [51, 50] reviews is not that of [49, 50]."""
    locale = Locale(language)
    runs = [
        replace(trained(seed=seed, majority_f1_weighted=f1), train_seed=str(seed))
        for seed, f1 in enumerate((0.3, 0.4))
    ]
    table = one_table(*runs)
    assert table.majority["f1_weighted"] == pytest.approx(0.35)
    notes = table_notes(table, locale)
    assert locale("note_subsets") in notes
    assert locale("note_majority_differs") not in notes
    same = [replace(run, train_seed="0") for run in runs]
    assert locale("note_majority_differs") in table_notes(one_table(*same), locale)


def test_leakage_is_a_mean_over_the_subsets_of_the_training_reviews() -> None:
    runs = [
        replace(trained(seed=seed, leakage_authors_share=share), train_seed=str(seed))
        for seed, share in enumerate((0.2, 0.3))
    ]
    table = one_table(*runs, trained("gru"))
    assert table.leakage == {"leakage_authors_share": pytest.approx(0.25)}
    assert "25% of the authors of the test set" in " ".join(conclusions(table, EN))


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_banner_names_unequal_information(language: str) -> None:
    locale = Locale(language)
    runs = [trained(), trained("gru"), trained("tfidf")]
    for run, share in zip(runs, (0.381, 0.385, 1.0), strict=True):
        run.metrics["characters_seen_share"] = share
    said = _texts(one_table(*runs), locale)
    assert f"TF-IDF: {locale.percent(1.0)}, gru: {locale.percent(0.385)}" in said
    assert "data.max_characters" in said
    # A difference of less than two points, or no record, is no reason for a warning.
    assert "data.max_characters" not in _texts(one_table(*runs[:2]), locale)
    assert "data.max_characters" not in _texts(one_table(trained()), locale)


def _texts(table: Table, locale: Locale) -> str:
    return " ".join(caveat.text for caveat in caveats(table, locale))


@pytest.mark.parametrize("strip", ["False", "True"])
def test_written_grades_are_a_caveat_if_they_are_in_the_texts(strip: str) -> None:
    """All reviews of this example have a grade."""
    run = trained(settings={"data.strip_scores": strip})
    said = _texts(one_table(run, answered={"bert": [3.0]}), EN)
    expected = "100% of the test reviews have a grade out of 10"
    assert (expected in said) == (strip == "False")


def test_reviews_with_an_empty_grade_count_as_reviews() -> None:
    run = trained(settings={"data.strip_scores": "False"})
    frame = answers(0, 3.0)
    frame["grade10"] = frame["grade10"].where(frame.index % 10 < 7)
    (table,) = tables([run], {run.run_id: Predictions.of(frame, run.run_id)})
    assert "70% of the test reviews have a grade" in _texts(table, EN)


def test_frozen_layers_that_ran_once_are_named_without_times() -> None:
    cached = trained("bert", "freeze", settings={"trainer.prefix_cache": "fp16"})
    plain = trained(settings={"trainer.prefix_cache": "off"})
    (note,) = [n for n in table_notes(one_table(cached, plain), EN) if "without dropout" in n]
    assert "computed only once, without dropout: bert + freeze." in note


@pytest.mark.parametrize(("split", "group"), [("film", "films"), ("author", "authors")])
def test_notes_name_the_groups_of_the_split(split: str, group: str) -> None:
    run = trained(settings={"data.split": split})
    table = one_table(run, answered={"bert": [3.0]})
    grouped = replace(table, comparison=replace(table.comparison, groups=(3300,)))
    (note,) = [note for note in table_notes(grouped, EN) if "The split keeps" in note]
    assert f"3300 test {group}" in note
    assert "only" not in note
    assert note.endswith(f"must come from new {group}.")


@pytest.mark.parametrize(("locale", "said"), [(EN, "draws single"), (RU, "отдельные отзывы")])
def test_a_note_says_that_a_single_group_is_not_drawn(locale: Locale, said: str) -> None:
    table = one_table(trained(), answered={"bert": [3.0]})
    grouped = replace(table, comparison=replace(table.comparison, groups=(1,)))
    assert [note for note in table_notes(grouped, locale) if said in note]


def test_each_caveat_is_said_once() -> None:
    """In the caveats, and not in the notes."""
    runs = [trained(seed=seed) for seed in range(2)]
    runs += [trained("gru", settings={"trainer.epochs": "5"}), trained("rnn", not_learned="test")]
    table = one_table(*runs)
    assert [caveat.short for caveat in caveats(table, EN)] == [
        "one seed: gru and rnn", "unequal budgets", "not learned: rnn"
    ]  # fmt: skip
    notes = " ".join(table_notes(table, EN))
    assert not any(word in notes for word in ("one seed", "trainer.epochs", "No evidence"))
    assert "verdict applies to these runs only" in _texts(one_table(*runs[1:3]), EN)
    assert caveats(one_table(*runs[:2]), EN) == []
