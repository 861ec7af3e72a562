"""Test how runs are grouped into rows and tables."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from report_rows import one_table, trained
from report_store import Store

from kinopoisk_ft.reporting.run_rows import rows_of, write_size
from kinopoisk_ft.reporting.runs import TrainedRun, collect
from kinopoisk_ft.reporting.table import tables


def test_tables_never_mix_rows_or_sources() -> None:
    runs = [trained(), trained("gru", split="b"), trained("mlp", source="t"), trained("rnn")]
    assert [[row.name for row in table.rows] for table in tables(runs, {})] == [
        ["bert", "rnn"],
        ["gru"],
        ["mlp"],
    ]


def test_seeds_are_averaged_within_one_split_and_recipe_alone() -> None:
    """Two splits have three seeds of one approach each; one more run reads half of the tokens."""
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
    # Even with the same test rows, different kinds of splits are different rows.
    same = [trained(seed=s, settings=settings[kind]) for s, kind in enumerate(settings)]
    assert [row.name for row in one_table(*same).rows] == [
        "bert (split=film)",
        "bert (split=random)",
    ]


def test_names_leave_out_what_is_not_set() -> None:
    limits = ("None", "900")
    runs = [trained("tfidf", settings={"data.max_characters": limit}) for limit in limits]
    names = {row.name for row in one_table(*runs).rows}
    assert names == {"TF-IDF", "TF-IDF (max_characters=900)"}


@pytest.mark.parametrize(
    ("run", "name"),
    [
        (trained("encoder", "lora", settings={"adapter.config.r": "8"}), "encoder 34M + LoRA r=8"),
        (trained("encoder", "ia3"), "encoder 34M + (IA)³"),
        (trained("encoder", "freeze"), "encoder 34M + freeze"),
        (trained("encoder", "none"), "encoder 34M"),
        (trained("tfidf"), "TF-IDF"),
    ],
)
def test_names_say_the_size_and_the_rank(run: TrainedRun, name: str) -> None:
    (row,) = rows_of([replace(run, metrics=run.metrics | {"total_parameters": 33_558_146.0})])
    assert row.name == name


@pytest.mark.parametrize(
    ("count", "written"),
    [(718_850, "719K"), (1_490_818, "1.5M"), (33_558_146, "34M"), (177_854_978, "178M"),
     (1_300_000_000, "1.3B"), (7_000_000_000, "7B")],
)  # fmt: skip
def test_sizes_have_two_or_three_digits(count: int, written: str) -> None:
    assert write_size(count) == written


def test_sizes_of_the_train_split_are_tables_and_its_seeds_are_not(tmp_path: Path) -> None:
    store = Store(tmp_path)
    home = store.experiment("labels")
    for limit in ("100", "300"):
        for seed in (0, 1):
            row = ("bert", "none", seed, 0.9, 0.9, 0.9, 10.0, 5, 5)
            chosen = {"data.train_limit": limit, "data.train_seed": str(seed)}
            store.run(home, row, **chosen)
    runs = collect(store.client, "labels").runs
    assert len(runs) == 4
    found = tables(runs, {})
    assert [table.train_limit for table in found] == ["300", "100"]
    assert [[(row.name, len(row.runs)) for row in table.rows] for table in found] == [
        [("bert", 2)],
        [("bert", 2)],
    ]


def test_seeds_of_an_earlier_version_are_in_the_same_row(tmp_path: Path) -> None:
    """Newer runs record more options; those about windows do not matter without windows."""
    store = Store(tmp_path)
    home = store.experiment("versions")
    row = ("bert", "none", 0, 0.9, 0.9, 0.9, 10.0, 5, 5)
    store.run(home, row)
    added = {"data.train_limit": "None", "data.window_stride": "None", "data.max_windows": "8"}
    store.run(home, (*row[:2], 1, *row[3:]), **added)
    added["data.truncation"] = "windows"
    store.run(home, (*row[:2], 2, *row[3:]), **added)
    (table,) = tables(collect(store.client, "versions").runs, {})
    assert sorted(len(row.runs) for row in table.rows) == [1, 2]
    # Without the number, a row with windows would look like one that reads all windows.
    assert {row.setting("data.max_windows") for row in table.rows} == {"", "8"}


def test_the_fit_of_the_output_layer_is_part_of_the_training_time() -> None:
    run = trained("bert", train_seconds=10.0)
    run.metrics["head_seconds"] = 2.0
    (row,) = rows_of([run])
    assert row.mean("train_seconds") == 12.0


def test_seeds_are_sorted_as_numbers() -> None:
    (row,) = one_table(*(trained(seed=seed) for seed in (10, 9, 100))).rows
    assert [run.seed for run in row.runs] == ["9", "10", "100"]


def test_a_model_without_tokens_has_no_speed() -> None:
    """The TF-IDF baseline records 0 tokens per second."""
    run = trained("tfidf")
    run.metrics["tokens_per_second"] = 0.0
    (row,) = rows_of([run])
    assert row.mean("tokens_per_second") is None
