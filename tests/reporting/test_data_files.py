"""Compare the report's numbers with pandas, and test the sentences that follow from them."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from report_rows import one_table, trained
from report_store import (
    COLUMNS,
    FINISHED,
    MAJORITY,
    OTHER_SPLIT,
    SPLIT,
    Store,
    filled_store,
    report,
)

from kinopoisk_ft.reporting.data_files import _csv, _record
from kinopoisk_ft.reporting.frames import against_best
from kinopoisk_ft.reporting.locale import Locale
from kinopoisk_ft.reporting.runs import collect


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return filled_store(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def study(store: Store, tmp_path_factory: pytest.TempPathFactory) -> tuple:
    return report(store, tmp_path_factory.mktemp("report"))


def oracle() -> pd.DataFrame:
    runs = pd.DataFrame(FINISHED, columns=COLUMNS)
    names = {
        "bert none": "bert 178M", "bert lora": "bert 178M + LoRA", "mamba none": "mamba 129M",
        "tfidf none": "TF-IDF",
    }  # fmt: skip
    runs["approach"] = (runs["model"] + " " + runs["adapter"]).map(names)
    numbers = runs.drop(columns=["model", "adapter", "seed"])
    return numbers.groupby("approach").agg(["mean", "std", "count"])


def test_means_and_deviations_are_those_of_pandas(study: tuple) -> None:
    found = study[0].set_index("approach").drop(index="majority class")
    expected = oracle()
    assert list(found["f1_weighted"]) == sorted(found["f1_weighted"], reverse=True)
    found = found.loc[expected.index]
    for column in COLUMNS[3:]:
        assert found[column].tolist() == pytest.approx(expected[column]["mean"].tolist())
    for column in COLUMNS[3:7]:
        stds = found[f"{column}_std"].tolist()
        assert stds == pytest.approx(expected[column]["std"].tolist(), nan_ok=True)
    assert found["n"].tolist() == expected["accuracy"]["count"].tolist()


def test_marks_best_values_and_distances(study: tuple) -> None:
    found = study[0].set_index("approach").drop(index="majority class")
    mean = oracle().xs("mean", axis=1, level=1).loc[found.index]
    best = {"accuracy": "max", "f1_weighted": "max", "train_seconds": "min"}
    marks = ("best_accuracy", "best_f1", "min_time")
    for (column, kind), mark in zip(best.items(), marks, strict=True):
        value = getattr(mean[column], kind)()
        assert found[f"{column}_best"].tolist() == pytest.approx([value] * len(found))
        distances = (mean[column] - value).tolist()
        assert found[f"{column}_from_best"].tolist() == pytest.approx(distances)
        assert (found[mark] == "yes").tolist() == (mean[column] == value).tolist()
    assert found.index[found["min_time"] == "yes"].tolist() == ["TF-IDF"]


def test_it_is_unknown_whether_a_missing_time_is_the_shortest(study: tuple) -> None:
    run = trained("gru")
    del run.metrics["train_seconds"]
    for runs, marks in (([run], ["-", "-"]), ([run, trained()], ["yes", "-", "-"])):
        table = one_table(*runs)
        assert against_best(table, Locale("en"))["training time: fastest"].tolist() == marks
        found = {row.name: _record(table, row)["min_time"] for row in table.rows}
        assert found == {"gru": ""} | ({"bert": "yes"} if len(runs) > 1 else {})
    last = study[1]["tables"][0]["rows"][-1]
    assert (last["best_f1"], last["min_time"]) == (False, None)


def test_unknown_values_are_empty_cells() -> None:
    """A number may be unknown in some lines only."""
    assert _csv([{"a": 1.5, "b": "x"}, {"a": None, "b": "y"}]) == "a,b\n1.5,x\n,y\n"


def test_majority_class_is_always_a_row(study: tuple) -> None:
    row = study[0].set_index("approach").loc["majority class"]
    assert row[list(MAJORITY)].to_dict() == MAJORITY
    # These runs are from a version without MCC, so its value is unknown.
    assert "| majority class | - | - | - | 0.8500 | 0.7811 | 0.4595 | - | - |" in study[2]
    assert study[0]["mcc"].isna().all()
    assert "MCC" not in " ".join(study[1]["tables"][0]["notes"])
    assert study[1]["tables"][0]["rows"][-1]["approach"] == "majority class"


def test_json_agrees_with_csv_and_names_its_runs(study: tuple, store: Store) -> None:
    rows = {row["approach"]: row for row in study[1]["tables"][0]["rows"]}
    lora = rows["bert 178M + LoRA"]
    assert lora["best_f1"] is True
    assert rows["bert 178M"]["best_f1"] is False
    assert [run["seed"] for run in lora["runs"]] == ["0", "1", "2"]
    assert store.client.get_run(lora["runs"][0]["run_id"]).data.tags["approach"] == "bert + lora"


def test_failed_runs_are_apart_and_not_ranked(study: tuple) -> None:
    table, whole, text = study
    assert "mamba + lora" not in table["approach"].tolist()
    failures = {f["approach"]: f for f in whole["failed"]}
    assert failures["mamba + lora"]["seeds"] == ["5", "6"]
    cause = "InstantiationException: Error in call to target 'a | b': UserError(\"no such folder\")"
    assert failures["mamba + lora"]["detail"] == cause
    assert failures["bert + lora"]["kind"] == "killed"
    assert f"| mamba + lora | 2 | 5, 6 | {cause.replace('|', chr(92) + '|')} |" in text
    assert "Older runs with the same approach, seed and test rows, left out: 1." in whole["notes"]
    assert "Unfinished runs, left out: 1." in whole["notes"]


def test_conclusions_follow_from_the_numbers(study: tuple) -> None:
    table = study[1]["tables"][0]
    said = " ".join([*table["recommendations"], *table["conclusions"]])
    assert "Best quality: bert 178M + LoRA, weighted F1 0.9509" in said
    assert "TF-IDF trains fastest, in 21.5 s" in said
    assert "296,450 trainable parameters instead of 177,854,978 (0.17% of them)" in said
    assert "Mamba (mamba 129M) against the best other pretrained network (bert 178M + LoRA)" in said
    # These runs kept no predictions, so no sentence may claim to know.
    assert "difference in weighted F1: −0.0264 (not tested" in said


def test_recommendations_for_each_limit(study: tuple) -> None:
    time, resources, quality = study[1]["tables"][0]["recommendations"]
    assert time.startswith("Little time: TF-IDF trains fastest, in 21.5 s")
    assert "If it has to be a network: bert 178M + LoRA" in time
    assert "TF-IDF has the fewest, 0;" in resources
    assert "If it has to be a network: bert 178M + LoRA, 296,450" in resources
    assert quality.startswith("Best quality: bert 178M + LoRA")
    (caveat,) = study[1]["tables"][0]["caveats"]
    assert caveat.startswith("mamba 129M and TF-IDF: trained with one seed, so the verdict applies")


def test_one_seed_is_no_measure_of_chance(store: Store, tmp_path: Path) -> None:
    _, whole, text = report(store, tmp_path, "experiment=one seed")
    assert "Each approach was trained with one seed" in whole["tables"][0]["caveats"][0]
    assert text.count("applies to these runs only") == 1
    assert "beyond chance" not in text
    assert "There is no TF-IDF baseline" in text


def test_other_test_rows_make_another_table(store: Store, tmp_path: Path) -> None:
    table, whole, text = report(store, tmp_path, "experiment=two splits")
    assert [t["split_digest"] for t in whole["tables"]] == [SPLIT, OTHER_SPLIT]
    assert "in separate tables; there are 2." in whole["notes"][0]
    names = set(table.loc[table["split_digest"] == OTHER_SPLIT, "approach"])
    assert names == {
        "bert 178M + LoRA (max_length=256)",
        "bert 178M + LoRA (max_length=512)",
        "majority class",
    }
    assert r'Different values of "maximum tokens per review (data.max\_length)": ' in text
    pictures = {f"comparison-{i}.{kind}" for i in (1, 2) for kind in ("png", "svg")}
    assert pictures <= {path.name for path in tmp_path.iterdir()}


def test_what_a_search_chose_is_known(store: Store) -> None:
    home = store.experiment("searched")
    for row, tag in zip(FINISHED[:3], (("trial", "3"), ("experiment", "best"), ()), strict=True):
        run_id = store.run(home, row)
        if tag:
            store.client.set_tag(run_id, *tag)
    runs = collect(store.client, "searched").runs
    assert [run.searched for run in runs] == ["trial", "experiment=best", ""]


def test_a_sweep_compares_its_own_runs_by_their_settings(store: Store, tmp_path: Path) -> None:
    table, whole, _ = report(store, tmp_path, f"parent={store.sweep}")
    assert whole["parent"] == store.sweep
    names = ["bert 178M + LoRA (lr=0.0003)", "bert 178M + LoRA (lr=0.001)", "majority class"]
    assert sorted(table["approach"]) == names
