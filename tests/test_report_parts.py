"""Tables, verdicts, label places and pictures, each without a store."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread
from matplotlib.text import Text
from report_rows import one_table, trained

from kinopoisk_ft.reporting.conclusions import conclusions
from kinopoisk_ft.reporting.labels import Box, place
from kinopoisk_ft.reporting.notes import table_notes
from kinopoisk_ft.reporting.pareto import pareto_front
from kinopoisk_ft.reporting.pictures import confusion_matrix_picture, learning_curve_picture
from kinopoisk_ft.reporting.recommendations import recommendations
from kinopoisk_ft.reporting.scatter import draw
from kinopoisk_ft.reporting.table import tables
from kinopoisk_ft.reporting.words import LANGUAGES, PHRASES, Words

EN = Words("en")


@pytest.mark.slow
def test_noise_is_called_noise() -> None:
    runs = [trained(m, seed=s, test_f1_weighted=f) for m, f in (("bert", 0.9), ("gru", 0.91))
            for s in range(3)]  # fmt: skip
    for skill, verdict in ((3.0, "not told apart: 95% interval"), (1.5, "beyond chance")):
        table = one_table(*runs, answered={"bert": [skill] * 3, "gru": [3.05] * 3})
        said = " ".join(conclusions(table, EN))
        assert verdict in said
        rivals = "Not told apart from it: bert" in " ".join(recommendations(table, EN))
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
    assert "not told apart after Holm's correction for 1 comparisons: p 0.300" in said
    assert "one seed, so of these runs and not of training" in said
    assert "Not told apart from it: bert" in recommendations(table, EN)[-1]


def test_without_predictions_chance_is_not_measured() -> None:
    table = one_table(trained(), trained("gru", test_f1_weighted=0.95))
    assert "chance was not measured" in conclusions(table, EN)[1]
    notes = " ".join(table_notes(table, EN))
    assert "bert: without predictions.parquet (seeds 0)" in notes
    assert "Not told apart" not in recommendations(table, EN)[-1]


def test_tables_never_mix_rows_or_sources() -> None:
    runs = [trained(), trained("gru", split="b"), trained("mlp", source="t"), trained("rnn")]
    assert [[row.name for row in table.rows] for table in tables(runs, {})] == [
        ["bert", "rnn"],
        ["gru"],
        ["mlp"],
    ]


def test_seeds_are_averaged_within_one_split_and_recipe_alone() -> None:
    """Three seeds of one approach on each of two splits, and one that reads half the tokens."""
    settings = {"random": {"data.split": "random"}, "film": {"data.split": "film"}}
    runs = [trained(seed=s, split=kind, settings=settings[kind], test_f1_weighted=f + s / 100)
            for kind, f in (("random", 0.9), ("film", 0.7)) for s in range(3)]  # fmt: skip
    half = {**settings["film"], "data.max_length": "128"}
    runs.append(trained(seed=3, split="film", settings=half, test_f1_weighted=0.5))
    found = {
        table.split_digest: {row.name: row.mean("f1_weighted") for row in table.rows}
        for table in tables(runs, {})
    }
    assert found == {
        "film": {
            "bert (max_length=256)": pytest.approx(0.71),
            "bert (max_length=128)": pytest.approx(0.5),
        },
        "random": {"bert": pytest.approx(0.91)},
    }
    # Were two splits to choose the same test rows, the rule that chose them keeps them apart.
    same = [trained(seed=s, settings=settings[kind]) for s, kind in enumerate(settings)]
    assert [row.name for row in one_table(*same).rows] == [
        "bert (split=film)",
        "bert (split=random)",
    ]


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
            words = Words(language)
            (said,) = [note for note in table_notes(table, words) if words(key) in note]
            assert f"{value} (gru)" in said
            assert ("tfidf" in said) == (key in ("data.strip_scores", "data.max_characters"))
    even = one_table(trained(settings=common), trained("gru", settings=common))
    assert "footing" not in " ".join(table_notes(even, EN))


@pytest.mark.parametrize("language", LANGUAGES)
def test_against_full_training_what_is_unequal_is_named(language: str) -> None:
    words = Words(language)
    common = {"trainer.epochs": "2", "trainer.batch_size": "16", "trainer.patience": "None"}
    full, even = trained(settings=common), trained("bert", "freeze", settings=common)
    changes = {"trainer.epochs": "5", "trainer.batch_size": "8", "trainer.patience": "3",
               "data.max_length": "64", "trainer.eval_every": "20"}  # fmt: skip
    longer = trained("bert", "lora", settings=changes, searched="experiment=best")
    said = conclusions(one_table(full, even, longer), words)
    ours, others = (
        [line for line in said if line.startswith(f"{name} ") and "(bert):" in line]
        for name in ("bert + lora", "bert + freeze")
    )
    budgets = words("budgets", differences="").partition("(")[0]
    assert budgets in ours[0]
    assert budgets not in others[0]
    for key, parts in {"trainer.epochs": "5 / 2", "trainer.batch_size": "8 / 16",
                       "trainer.patience": "3 / -", "data.max_length": "64 / 256",
                       "trainer.eval_every": "20 / -",
                       "search": "experiment=best / -"}.items():  # fmt: skip
        assert f"{words(key)} {parts}" in ours[0]


def test_no_phrase_calls_an_approach_better() -> None:
    """The verdicts say whether chance explains a difference; no other phrase may judge."""
    for key, texts in PHRASES.items():
        for text in texts.values():
            assert not re.search(r"\bbetter\b|outperform|\bbeats?\b|лучше |превос|превзо", text), (
                key
            )


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
    assert "Not on an equal footing, device: cpu (bert); cuda (gru)." in notes
    assert "data behind the same row numbers are not the same" in notes


@pytest.mark.parametrize("language", LANGUAGES)
def test_unequal_precision_is_named(language: str) -> None:
    words = Words(language)
    full, same = trained(precision="bf16"), trained("bert", "freeze", precision="bf16")
    lora = [trained("bert", "lora", seed=s, precision=p) for s, p in enumerate(("bf16", "fp32"))]
    table = one_table(full, same, *lora, trained("tfidf", precision="fp64"))
    (said,) = [note for note in table_notes(table, words) if words("precision") in note]
    assert "bf16, fp32 (bert + lora)" in said
    assert "fp64" not in said
    ours = [line for line in conclusions(table, words) if line.startswith("bert + lora ")]
    assert f"{words('precision')} bf16, fp32 / bf16" in ours[0]
    # The seeds of one approach may differ, too.
    assert any("bf16, fp32 (bert + lora)" in note for note in table_notes(one_table(*lora), words))
    even = table_notes(one_table(full, same), words)
    assert not any(words("precision") in note for note in even)


def test_times_that_one_recipe_does_not_explain_are_doubted() -> None:
    for seconds, doubted in (((100.0, 140.0), False), ((100.0, 900.0), True)):
        runs = [trained(seed=i, train_seconds=s) for i, s in enumerate(seconds)]
        notes = " ".join(table_notes(one_table(*runs), EN))
        assert ("trained from 100.0 to 900.0 s" in notes) == doubted


def test_tfidf_may_be_the_best() -> None:
    table = one_table(trained(), trained("tfidf", test_f1_weighted=0.95, train_seconds=2.0))
    said = conclusions(table, EN)
    assert "No network measured higher than the TF-IDF baseline." in said
    assert "tfidf also trains fastest, 2.00 s." in said


def test_a_single_approach_has_nothing_to_compare() -> None:
    table = one_table(trained())
    said = " ".join(conclusions(table, EN))
    assert "bert is the only approach here" in said
    assert "Every approach was measured with one seed" in said
    assert recommendations(table, EN) == []


@pytest.mark.slow
def test_labels_overlap_neither_one_another_nor_points() -> None:
    rng = np.random.default_rng(1)
    for _ in range(8):
        points = rng.normal((350, 200), (40, 20), size=(20, 2)).tolist()
        marks = [Box(x - 6, y - 6, x + 6, y + 6) for x, y in points]
        sizes = [(width, 14.0) for width in rng.uniform(30, 160, 20)]
        frame = Box(0, 0, 700, 400)
        boxes = place(marks, sizes, frame)
        assert all(box.within(frame) for box in boxes)
        assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
        assert not any(box.overlaps(mark) for box in boxes for mark in marks)
        assert [b.right - b.left for b in boxes] == pytest.approx([width for width, _ in sizes])


def test_picture_keeps_labels_apart_and_zero_on_the_axis() -> None:
    adapters = ["none", "lora", "dora", "ia3", "bitfit", "head"]
    runs = [
        trained(m, a, test_f1_weighted=0.93 + i / 5000, trainable_parameters=10.0 ** (3 + i % 5))
        for i, (m, a) in enumerate(itertools.product(("bert", "mamba"), adapters))
    ]
    runs.append(trained("tfidf", trainable_parameters=0.0, train_seconds=9.0))
    figure = draw(one_table(*runs), EN)
    figure.draw_without_rendering()
    for axes in figure.axes:
        frame = axes.get_window_extent()
        extents = [Text.get_window_extent(text) for text in axes.texts]  # without its line
        assert len(extents) == len(runs)
        assert not any(a.overlaps(b) for a, b in itertools.combinations(extents, 2))
        assert all(frame.x0 <= e.x0 and e.x1 <= frame.x1 for e in extents)
    time, parameters = figure.axes
    assert "0" not in [label.get_text() for label in time.get_xticklabels()]
    label, position = parameters.get_xticklabels()[0], parameters.get_xticks()[0]
    low, _ = parameters.get_xlim()
    assert label.get_text() == "0"
    assert low < position < 1000


def test_pareto_front_is_what_nothing_dominates() -> None:
    points = [(float(x), float(y)) for x, y in np.random.default_rng(0).integers(0, 12, (60, 2))]
    expected = {
        i
        for i, (cost, score) in enumerate(points)
        if not any(c <= cost and s >= score and (c, s) != (cost, score) for c, s in points)
    }
    found = pareto_front(points)
    assert set(found) == expected
    assert [points[i][0] for i in found] == sorted(points[i][0] for i in found)


@pytest.mark.parametrize("size", [2, 6, 15])
def test_confusion_matrix_picture(size: int, tmp_path: Path) -> None:
    matrix = np.eye(size, dtype=int) * 50 + 1
    matrix[0] = 0  # a class with no test rows
    file = tmp_path / "matrix.png"
    confusion_matrix_picture(matrix, [f"класс {i}" for i in range(size)], file)
    assert imread(file).shape[1] >= 800
    assert [path.name for path in tmp_path.iterdir()] == ["matrix.png"]


def test_confusion_matrix_must_fit_its_names(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="3 class names"):
        confusion_matrix_picture([[1, 0], [0, 1]], ["a", "b", "c"], tmp_path / "m.png")
    assert list(tmp_path.iterdir()) == []


def test_learning_curve_takes_gaps_and_nothing(tmp_path: Path) -> None:
    history = [{"step": s, "train_loss": 1 / s, "val_loss": None} for s in range(1, 50)]
    history += [{"step": 49, "val_loss": 0.3, "val_f1_weighted": float("nan")}]
    history += [{"step": 50, "val_loss": 0.2, "val_f1_weighted": 0.9}]
    for name, rows in {"a": history, "b": history, "losses": history[:9], "none": []}.items():
        folder = tmp_path / name
        folder.mkdir()
        learning_curve_picture(rows, folder / "curve.svg")
    assert (tmp_path / "a/curve.svg").read_bytes() == (tmp_path / "b/curve.svg").read_bytes()
    sizes = {
        name: (tmp_path / name / "curve.svg").stat().st_size for name in ("a", "losses", "none")
    }
    assert sizes["none"] < sizes["losses"] < sizes["a"]


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
    assert "Not told apart from it: gru. Repeat" in recommendations(table, EN)[-1]
