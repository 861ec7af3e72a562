"""Test `kinopoisk-ft compare` on prediction files of other tools."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import f1_score

from kinopoisk_ft.cli import main
from kinopoisk_ft.statistics.predictions import Predictions


def table(accuracy: float, seed: int, rows: int = 600) -> pd.DataFrame:
    """Return predictions with the given accuracy on the same examples."""
    labels = np.where(np.arange(rows) % 3 > 0, "Good", "Bad")
    right = np.random.default_rng(seed).random(rows) < accuracy
    predicted = np.where(right, labels, np.where(labels == "Good", "Bad", "Good"))
    return pd.DataFrame({"label": labels, "predicted": predicted})


@pytest.fixture(autouse=True)
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    table(0.95, 0).to_csv("a.csv", index=False)
    shuffled = table(0.95, 1).reset_index(names="row").sample(frac=1, random_state=0)
    shuffled.to_parquet("b.parquet", index=False)
    table(0.70, 2).to_json("c.jsonl", orient="records", lines=True)


def test_approaches_get_verdicts(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "one=a.csv,b.parquet", "c.jsonl", "--margin", "0.05"]) == 0
    shown = capsys.readouterr().out
    lines = {line.split()[0]: line for line in shown.splitlines() if line.strip()}
    scores = [f1_score(t["label"], t["predicted"], average="weighted")
              for t in (table(0.95, 0), table(0.95, 1), table(0.70, 2))]  # fmt: skip
    assert f"{np.mean(scores[:2]):.4f} [" in lines["one"]
    assert f"{scores[2]:.4f} [" in lines["c"]
    assert "reference" in lines["one"]
    assert lines["c"].split()[-2:] == ["worse", "worse"]
    # The bounds agree with the verdict at the margin.
    low, high = map(float, lines["c"].split("[")[2].split("]")[0].split(","))
    assert low < high <= -0.05


def test_unnamed_files_may_contain_an_equals_sign(capsys: pytest.CaptureFixture[str]) -> None:
    """Sweeps write to folders such as lr=0.1."""
    for lr, seed in (("0.1", 0), ("0.2", 1)):
        Path(f"lr={lr}").mkdir()
        table(0.95, seed).to_csv(f"lr={lr}/p{seed}.csv", index=False)
    assert main(["compare", "lr=0.1/p0.csv,lr=0.2/p1.csv", "named=lr=0.2/p1.csv"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {line.split()[0] for line in lines[2:4]} == {"p0", "named"}


def test_a_chosen_reference_and_what_would_decide(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "a.csv", "b.parquet", "--reference", "b"]) == 0
    shown = capsys.readouterr().out
    assert "minus b" in shown
    assert "a: undecided at 0.02; needed for a verdict: additional test examples (at" in shown
    assert "how many seeds is unknown, because an approach has only one" in shown


def test_approaches_with_one_seed_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    for first, expected in (("one=a.csv,b.parquet", "One seed: c."), ("a.csv", "One seed: a, c.")):
        assert main(["compare", first, "c.jsonl"]) == 0
        assert f"{expected} The variation between seeds was not measured" in capsys.readouterr().out
    assert main(["compare", "one=a.csv,b.parquet", "two=b.parquet,a.csv"]) == 0
    assert "One seed" not in capsys.readouterr().out


def test_films_are_resampled_together(capsys: pytest.CaptureFixture[str]) -> None:
    for name, seed in (("a", 0), ("b", 1)):
        grouped = table(0.9, seed)
        grouped["film"] = [f"film {n // 60}" for n in range(600)]
        grouped.to_csv(f"{name}.csv", index=False)
        grouped.drop(columns="film").to_csv(f"{name}-alone.csv", index=False)
    widths = []
    for names in (("a.csv", "b.csv"), ("a-alone.csv", "b-alone.csv")):
        assert main(["compare", *names]) == 0
        row = next(x for x in capsys.readouterr().out.splitlines() if x.startswith(("a ", "a-")))
        low, high = row.split("[")[1].split("]")[0].split(",")
        widths.append(float(high) - float(low))
    assert widths[0] != widths[1]


def test_examples_without_a_film_are_separate_groups() -> None:
    unknown = table(0.9, 0).assign(film=["a"] * 300 + [None] * 300)
    made = Predictions.from_names(unknown, ("Bad", "Good"), "unknown.csv")
    assert made.groups is not None
    assert len(np.unique(made.groups)) == 301


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["a.csv"], "there is only one approach"),
        (["a.csv", "nowhere.csv"], "does not exist"),
        (["a.csv", "x=a.csv", "x=c.jsonl"], "two approaches have the name 'x'"),
        (["a.csv", "x=c.jsonl,./c.jsonl"], "the approach 'x' has the same file twice"),
        (["a.csv", "x="], "a name or a file is missing"),
        (["a.csv", "=c.jsonl"], "a name or a file is missing"),
        (["a.csv", "short.csv"], "have different rows"),
        (["a.csv", "other.csv"], "have different labels"),
        (["a.csv", "lacking.csv"], "rename one of the columns label, prediction to 'predicted'"),
        (["a.csv", "empty.csv"], "has no value in row 3"),
        (["a.csv", "c.jsonl", "--margin", "2"], "--margin 2.0 is not between 0 and 1"),
        (["a.csv", "c.jsonl", "--reference", "d"], "there is no approach 'd'"),
        (["a.csv", "rows.csv"], "not whole numbers of up to 18 digits"),
        (["a.csv", "long.csv"], "not whole numbers of up to 18 digits"),
        (["a.csv", "films.csv"], "have different groups of test examples"),
        (["films.csv", "a.csv"], "have different groups of test examples"),
        (["films.csv", "halves.csv"], "have different groups of test examples"),
        (["one=films.csv,a.csv", "films.csv"], "have different groups of test examples"),
        (["one=same.csv", "two=same.csv"], "all test examples belong to the same group"),
        (["x=single.csv", "y=single.csv"], "there is only one test example"),
    ],
)
def test_mistakes_are_explained(
    args: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    good = table(0.9, 0)
    good[:500].to_csv("short.csv", index=False)
    good.assign(label=good["label"].to_numpy()[::-1]).to_csv("other.csv", index=False)
    good.rename(columns={"predicted": "prediction"}).to_csv("lacking.csv", index=False)
    good.assign(predicted=good["predicted"].where(good.index != 3)).to_csv("empty.csv", index=False)
    good.assign(row=[f"r{n}" for n in range(600)]).to_csv("rows.csv", index=False)
    good.assign(row=[10**20 + n for n in range(600)]).to_csv("long.csv", index=False)
    good.assign(film=[n // 60 for n in range(600)]).to_csv("films.csv", index=False)
    good.assign(group=[n // 300 for n in range(600)]).to_csv("halves.csv", index=False)
    good.assign(group="test").to_csv("same.csv", index=False)
    good[:1].assign(label="Bad", predicted="Good").to_csv("single.csv", index=False)
    assert main(["compare", *args]) == 1
    assert message in capsys.readouterr().err
