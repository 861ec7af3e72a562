"""Test that runs with different numbers of labels are in separate tables, and in curves."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from quick import quick
from report_rows import trained
from report_store import answers

from kinopoisk_ft.reporting.data_files import as_json
from kinopoisk_ft.reporting.document import Document, build
from kinopoisk_ft.reporting.label_curves import crossings_frame, scores_frame, sentences
from kinopoisk_ft.reporting.locale import LANGUAGES, Locale
from kinopoisk_ft.reporting.markdown import as_markdown, as_note
from kinopoisk_ft.reporting.output import write
from kinopoisk_ft.reporting.run_files import RunFiles
from kinopoisk_ft.reporting.runs import Collected, TrainedRun
from kinopoisk_ft.reporting.summary import as_summary
from kinopoisk_ft.reporting.table import data_line, tables
from kinopoisk_ft.statistics.predictions import Predictions

EN = Locale("en")
# The skill of each approach with each number of labels.
SKILLS = {"tfidf": {"100": 1.6, "1000": 2.0, "None": 2.3},
          "bert": {"100": 0.8, "1000": 2.6, "None": 3.2}}  # fmt: skip
COUNTS = {"100": 104.0, "1000": 998.0, "None": 3300.0}


def made() -> tuple[Collected, dict[str, Predictions]]:
    runs, predictions = [], {}
    for model, skills in SKILLS.items():
        for limit, skill in skills.items():
            for seed in range(2):
                settings = {"data.train_limit": limit, "data.split": "film"}
                run = trained(
                    model, seed=seed, settings=settings, train_reviews=COUNTS[limit],
                    test_f1_weighted=0.5 + skill / 10,
                )  # fmt: skip
                run = replace(run, run_id=f"{model} {limit} {seed}")
                predictions[run.run_id] = Predictions.of(answers(seed, skill), run.run_id)
                runs.append(run)
    return Collected(experiment="labels", runs=runs), predictions


@pytest.fixture(scope="module")
def document() -> Document:
    collected, predictions = made()
    return build(collected, predictions, None, EN)


def test_each_number_of_labels_has_a_table_with_equal_cost(document: Document) -> None:
    found = [section.table for section in document.sections]
    assert [table.train_limit for table in found] == ["", "1000", "100"]
    assert [row.name for row in found[0].rows] == ["bert", "TF-IDF"]
    assert [row.name for row in found[2].rows] == ["TF-IDF", "bert"]
    text = as_summary(document, EN)
    assert "split by film, test rows" in text
    assert "test rows a, 1,000 training labels" in text


def test_a_fraction_is_a_percentage_of_the_labels() -> None:
    """Half of the labels may be more than 100 labels."""
    collected, predictions = made()
    half = [
        replace(
            run,
            settings=run.settings | {"data.train_limit": "0.5"},
            not_learned="test" if run.model == "bert" else "",
        )
        if run.settings["data.train_limit"] == "1000"
        else run
        for run in collected.runs
    ]
    for language, line, sentence in (
        ("en", "a, 50% of the training labels", "With 998 training labels, these"),
        ("ru", "отзывов для обучения: 50\xa0% от всех", "Размеченных отзывов: 998."),
    ):
        locale = Locale(language)
        found = build(replace(collected, runs=half), predictions, None, locale)
        assert [s.table.train_limit for s in found.sections] == ["", "0.5", "100"]
        assert line in data_line(found.sections[1].table, locale)
        assert sentence in sentences(found.curves[0], locale)[-1]


def test_tables_with_unknown_numbers_of_labels_are_in_the_order_of_the_limit() -> None:
    collected, predictions = made()
    for run in collected.runs:
        run.metrics.pop("train_reviews")
    assert [t.train_limit for t in tables(collected.runs, predictions)] == ["", "1000", "100"]


def test_verdicts_of_a_curve_are_corrected_for_all_its_points(document: Document) -> None:
    collected, predictions = made()
    alone = [run for run in collected.runs if run.settings["data.train_limit"] == "1000"]
    (single,) = tables(alone, predictions)
    together = document.sections[1].table
    for margin, decisions in together.decisions.items():
        for name, decision in decisions.items():
            other = single.decisions[margin][name]
            assert decision.p_as_good >= other.p_as_good
            assert decision.p_worse >= other.p_worse
    assert any(
        decision.p_worse > single.decisions[margin][name].p_worse
        for margin, decisions in together.decisions.items()
        for name, decision in decisions.items()
    )


def test_the_crossing_is_said_with_its_interval(document: Document) -> None:
    (curves,) = document.curves
    (crossing,) = curves.crossings
    assert (crossing.a, crossing.b) == ("bert", "TF-IDF")
    assert 104 < crossing.low < crossing.labels < crossing.high < 998
    (said,) = sentences(curves, EN)
    assert said.startswith("bert overtakes TF-IDF at about ")
    scores = scores_frame(curves, EN)
    assert list(scores.columns)[:4] == ["approach", "104 labels", "998 labels", "3,300 labels"]
    assert scores.columns[-1] == "expected gain from 500 more labels"
    assert len(crossings_frame(curves, EN)) == 1


@pytest.mark.parametrize("language", quick(LANGUAGES, 1))
def test_every_format_has_the_curves(language: str, document: Document, tmp_path: Path) -> None:
    locale = Locale(language)
    collected, predictions = made()
    if language != "en":
        document = build(collected, predictions, None, locale)
    (said,) = sentences(document.curves[0], locale)
    assert said in " ".join(as_summary(document, locale).split())
    assert said in as_markdown(document, locale)
    assert said in as_note(document, locale, 5000, "")
    whole = json.loads(as_json(document, language))
    (curves,) = whole["label_curves"]
    assert [point["labels"] for point in curves["points"]] == [104, 998, 3300] * 2
    assert curves["crossings"][0]["a"] == "bert"
    write(document, RunFiles(predictions, {}), locale, tmp_path)
    page = (tmp_path / "comparison.html").read_text("utf-8")
    assert said in page
    assert '<section id="labels-1">' in page
    assert (tmp_path / "labels-1.png").stat().st_size > 10_000


def test_a_crossing_outside_the_measured_numbers_is_bounded(document: Document) -> None:
    (curves,) = document.curves
    (crossing,) = curves.crossings
    for changes, text in (
        ({"low": 0.0}, "fewer than 104 to"),
        ({"high": float("inf")}, "to more than 3,300)."),
        ({"high": float("inf")}, "bert may overtake TF-IDF at about"),
        # Two digits would be 100 and 3,400.
        ({"low": 104.4, "high": 3356.0, "most": 3363.0}, "(95% interval: 104 to 3,363)."),
        ({"labels": 0.0}, "is already above TF-IDF at 104 labels, the smallest number measured"),
        ({"labels": float("inf")}, "does not overtake TF-IDF with up to 3,300 labels"),
    ):
        (said,) = sentences(replace(curves, crossings=[replace(crossing, **changes)]), EN)
        assert text in said


@pytest.mark.parametrize("language", LANGUAGES)
def test_an_earlier_lead_is_said(language: str) -> None:
    """LoRA may be ahead with few labels, behind with more and ahead again with all."""
    collected, predictions = made()
    answered = {run.run_id: run.run_id for run in collected.runs}
    # With 104 labels, bert and TF-IDF exchange their predictions.
    for seed in range(2):
        few = [f"bert 100 {seed}", f"tfidf 100 {seed}"]
        answered |= dict(zip(few, reversed(few), strict=True))
        middle = [f"bert 1000 {seed}", f"tfidf 1000 {seed}"]
        answered |= dict(zip(middle, reversed(middle), strict=True))
    exchanged = {name: predictions[other] for name, other in answered.items()}
    locale = Locale(language)
    (found,) = build(collected, exchanged, None, locale).curves
    said = sentences(found, locale)[0]
    expected = locale("above_before", a="bert", b="TF-IDF", above="104", below="998")
    assert said.startswith("bert ")
    assert said.endswith(expected)
    assert crossings_frame(found, locale).iloc[0, -1] == "104"


def test_runs_that_do_not_say_their_number_of_labels_have_no_curve() -> None:
    """Runs of an earlier version are an example."""
    collected, predictions = made()
    for run in collected.runs:
        run.metrics.pop("train_reviews")
    assert build(collected, predictions, None, EN).curves == []


def test_curves_follow_the_settings_and_not_the_numbers_in_names(document: Document) -> None:
    """Two recipes of one approach have separate curves."""
    collected, predictions = made()
    runs, joined = [], {}
    for run in collected.runs:
        for lr in ("1", "2") if run.settings["data.train_limit"] == "100" else ("2", "1"):
            changed = {f"trainer.option{i}": lr for i in range(3)}
            settings = run.settings | changed
            name = f"{run.run_id} {lr}"
            model = run.model if lr == "1" else {"bert": "tfidf", "tfidf": "bert"}[run.model]
            runs.append(replace(run, run_id=name, approach="a", model="a", settings=settings))
            joined[name] = predictions[run.run_id.replace(run.model, model)]
    collected = replace(collected, runs=[run for run in runs if run.run_id.startswith("bert")])
    (found,) = build(collected, joined, None, EN).curves
    scores = {curve.name: [i.mean for i in curve.intervals] for curve in found.curves}
    expected = {tuple(i.mean for i in curve.intervals) for curve in document.curves[0].curves}
    assert {tuple(values) for values in scores.values()} == expected


def test_two_recipes_with_the_same_name_have_two_curves() -> None:
    """Rows are numbered in each table, and a failed job shifts the numbers."""
    collected, predictions = made()
    runs, joined = [], {}
    for run in collected.runs:
        for lr in ("1", "2", "3"):
            if run.model == "bert" and (run.settings["data.train_limit"], lr) != ("None", "2"):
                changed = {f"trainer.option{i}": lr for i in range(3)}
                name = f"{run.run_id} {lr}"
                runs.append(replace(run, run_id=name, settings=run.settings | changed))
                joined[name] = predictions[run.run_id]
    document = build(replace(collected, runs=runs), joined, None, EN)
    (found,) = document.curves
    assert len({curve.name for curve in found.curves}) == 3
    limits = sorted([point.limit for point in curve.points] for curve in found.curves)
    assert limits == [["100", "1000"], ["100", "1000", ""], ["100", "1000", ""]]
    assert {curve.name for curve in found.curves} <= set(document.looks)


def test_a_crossing_names_only_numbers_with_both_approaches() -> None:
    collected, predictions = made()
    runs = [run for run in collected.runs if not run.run_id.startswith("bert 100 ")]
    (found,) = build(replace(collected, runs=runs), predictions, None, EN).curves
    (crossing,) = found.crossings
    assert (crossing.fewest, crossing.most) == (998, 3300)
    said = " ".join(sentences(found, EN)) + crossings_frame(found, EN).to_string()
    assert "fewer than 998" in said
    assert "104" not in said


@pytest.mark.parametrize("language", LANGUAGES)
def test_points_with_one_seed_are_named(language: str) -> None:
    locale = Locale(language)
    collected, predictions = made()
    names = ("bert 100 1", "bert 1000 1", "tfidf 1000 1")
    runs = [run for run in collected.runs if run.run_id not in names]
    (found,) = build(replace(collected, runs=runs), predictions, None, locale).curves
    points = f"104 (bert); 998 ({locale('everyone')})"
    assert sentences(found, locale)[-1] == locale("points_one_seed", points=points)


@pytest.mark.parametrize(("limit", "word"), [("None", "overtakes"), ("1000", "may overtake")])
def test_a_crossing_next_to_a_point_with_one_seed_is_not_confirmed(limit: str, word: str) -> None:
    collected, predictions = made()
    runs = [run for run in collected.runs if run.run_id != f"tfidf {limit} 1"]
    (found,) = build(replace(collected, runs=runs), predictions, None, EN).curves
    assert sentences(found, EN)[0].startswith(f"bert {word} TF-IDF at about")


def test_points_without_learning_are_named() -> None:
    collected, predictions = made()
    runs = [
        replace(run, not_learned="test") if run.run_id.startswith("bert 100") else run
        for run in collected.runs
    ]
    (found,) = build(replace(collected, runs=runs), predictions, None, EN).curves
    said = sentences(found, EN)
    assert "With 104 training labels, these may have learned nothing: bert." in said[-1]


def with_settings(runs: list[TrainedRun], **settings: str) -> list[TrainedRun]:
    written = {f"trainer.{key}": value for key, value in settings.items()}
    return [replace(run, settings=run.settings | written) for run in runs]


def test_settings_may_depend_on_the_number_of_labels() -> None:
    collected, predictions = made()
    few = with_settings(
        [run for run in collected.runs if " None " not in run.run_id], min_steps="9"
    )
    many = with_settings(
        [run for run in collected.runs if " None " in run.run_id], min_steps="None"
    )
    (found,) = build(replace(collected, runs=few + many), predictions, None, EN).curves
    assert [len(curve.points) for curve in found.curves] == [3, 3]
    expected = (
        "Settings that depend on the number of labels: minimum number of optimizer steps "
        "(trainer.min_steps)."
    )
    assert sentences(found, EN)[-1] == expected
    # Two settings with the same number of labels have separate curves.
    again = [replace(run, run_id=f"{run.run_id} again") for run in with_settings(few, epochs="7")]
    predictions |= {run.run_id: predictions[run.run_id.removesuffix(" again")] for run in again}
    (found,) = build(replace(collected, runs=few + again), predictions, None, EN).curves
    assert [len(curve.points) for curve in found.curves] == [2, 2, 2, 2]
    assert found.differing == ()


def test_approaches_with_the_same_limit_are_at_the_same_place() -> None:
    """Films are kept whole, so the number of labels depends on the seed."""
    collected, predictions = made()
    for run in collected.runs:
        run.metrics["train_reviews"] += 10 * int(run.seed)
    runs = [run for run in collected.runs if run.run_id != "bert 100 1"]
    (found,) = build(replace(collected, runs=runs), predictions, None, EN).curves
    places = [[point.labels for point in curve.points] for curve in found.curves]
    assert places == [[pytest.approx(104 + 10 / 3), 1003, 3305]] * 2


def test_undecided_crossings_are_in_one_sentence(document: Document) -> None:
    (curves,) = document.curves
    (crossing,) = curves.crossings
    wide = replace(crossing, low=0.0, high=float("inf"))
    said = sentences(replace(curves, crossings=[wide, crossing, replace(wide, b="words")]), EN)
    assert len(said) == 2
    assert said[0].startswith("bert overtakes TF-IDF")
    assert said[1].endswith("numbers of labels: bert and TF-IDF.")
