"""Test the report's command: its output, files and errors, in two languages."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from report_store import Store, filled_store, report

from kinopoisk_ft.commands.report import main
from kinopoisk_ft.errors import UserError
from kinopoisk_ft.reporting import output
from kinopoisk_ft.tracking.store import open_experiment


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return filled_store(tmp_path_factory.getbasetemp())


def test_russian(store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table, whole, text = report(store, tmp_path, "language=ru")
    printed = capsys.readouterr().out
    assert "обучаемых" in printed
    assert "Лучшее качество: bert 178M + LoRA" in printed
    assert "Результаты на тестовой выборке" in text
    assert "Второй по взвешенной F1 — " in text
    assert "177\N{NO-BREAK SPACE}854\N{NO-BREAK SPACE}978" in text
    assert "Recommendations" not in text + printed
    assert "значимость не проверялась: нет предсказаний, которые можно сравнить" in text
    assert whole["language"] == "ru"
    assert "majority class" in table["approach"].tolist()


def test_the_terminal_shows_a_summary_of_80_columns(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report(store, tmp_path)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines[:-1])) <= 80
    start = next(i for i, line in enumerate(lines) if line.startswith("approach  "))
    assert lines[start + 2].startswith("bert 178M + LoRA  0.951 ")
    assert any(line.startswith("majority class  ") for line in lines)
    assert any(line.startswith("Best quality: bert 178M + LoRA") for line in lines)
    assert str(tmp_path / "comparison.html") in lines[-1]


@pytest.mark.slow
def test_same_store_gives_same_bytes_and_stays_as_it_was(store: Store, tmp_path: Path) -> None:
    database = store.folder / "mlflow.db"
    before = database.read_bytes()
    for name in ("a", "b"):
        report(store, tmp_path / name, "experiment=answered", figures=True)
    assert database.read_bytes() == before
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    expected = [f"comparison.{kind}" for kind in ("csv", "html", "json", "md", "png", "svg", "tex")]
    expected += ["comparison-differences.csv", "comparison-slices.csv"]
    pictures = ("comparison-differences", "comparison-calibration")
    expected += [f"{name}.{kind}" for name in pictures for kind in ("png", "svg")]
    assert files == sorted(expected)
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


def test_a_failure_leaves_the_earlier_report(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report(store, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full_disk(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setitem(output.FIGURES, "comparison", full_disk)
    assert main(["--uri", store.uri, f"output={tmp_path}", "language=ru"]) == 1
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def complaint(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    """Run a command that fails; return its error message, which must have no traceback."""
    assert main(list(args)) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert "Traceback" not in error
    return error


@pytest.mark.parametrize("uri", [None, "sqlite:///sub/none.db", "mlruns", "sqlite://"])
def test_a_missing_store_is_not_created(
    uri: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    error = complaint(capsys, *(["--uri", uri] if uri else []))
    assert "the MLflow store does not exist" in error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("schema", "fix"),
    [
        ("0a8213491aaa", "run mlflow db upgrade sqlite:///"),
        ("ffffffffffff", "install the MLflow version that wrote the store"),
    ],
    ids=["older", "newer"],
)
def test_a_store_of_another_version_is_not_migrated(
    schema: str, fix: str, store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The report and a run give the same error, which names the fix."""
    other = tmp_path / "other.db"
    shutil.copy(store.folder / "mlflow.db", other)
    with sqlite3.connect(other) as connection:
        connection.execute("UPDATE alembic_version SET version_num = ?", (schema,))
        connection.execute("DROP TABLE trace_info")
    connection.close()
    before = other.read_bytes()
    error = complaint(capsys, "--uri", f"sqlite:///{other}")
    with pytest.raises(UserError) as refused:
        open_experiment(f"sqlite:///{other}", "kinopoisk_ft", None)
    for told in (error, str(refused.value)):
        assert f"another MLflow version: its schema is {schema}" in told
        assert fix in told
        assert str(other) in told
    assert other.read_bytes() == before


def test_other_files_are_no_store(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    empty, text = tmp_path / "empty.db", tmp_path / "text.db"
    empty.touch()
    text.write_text("no database")
    assert "incomplete and empty" in complaint(capsys, f"uri=sqlite:///{empty}")
    assert empty.stat().st_size == 0
    assert "cannot be read" in complaint(capsys, f"uri=sqlite:///{text}")
    assert f"sqlite:///{text}" in complaint(capsys, f"uri={text}")
    assert "not the URI of an MLflow store" in complaint(capsys, "uri=what://")


def test_mistakes_name_the_nearest(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    uri = ["--uri", store.uri, "--output", str(tmp_path / "out")]
    assert "did you mean 'kinopoisk_ft'?" in complaint(capsys, *uri, "experiment=kinopoisk_tf")
    wrong = store.sweep[:-2] + "zz"
    assert f"did you mean '{store.sweep}'?" in complaint(capsys, *uri, f"parent={wrong}")
    assert "no training run" in complaint(capsys, *uri, "experiment=nothing finished")
    assert "did you mean 'language'?" in complaint(capsys, *uri, "langauge=ru")
    damaged = complaint(capsys, *uri, "experiment=damaged")
    assert "predictions.parquet cannot be read" in damaged
    assert "(bert, seed 0)" in damaged
    assert "the report is not available in the language 'de'" in complaint(
        capsys, *uri, "language=de"
    )
    for count in "11", "-1":
        assert "use 0 to 10" in complaint(capsys, *uri, f"explain={count}")
    assert not (tmp_path / "out").exists()
    taken = tmp_path / "taken"
    taken.touch()
    assert "cannot be written" in complaint(capsys, "--uri", store.uri, f"output={taken}")


def test_a_parent_without_results_is_told(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    uri = ["--uri", store.uri, "--output", str(tmp_path / "out")]
    empty = complaint(capsys, *uri, f"parent={store.unfinished}")
    assert f"where: experiment 'unfinished', sweep {store.unfinished}" in empty
    assert "no training run has finished" in empty
    assert "failed: 1, not finished: 1" in empty
    home = store.client.get_run(store.sweep).info.experiment_id
    child = store.client.search_runs([home], f"tags.`mlflow.parentRunId` = '{store.sweep}'")[0]
    single = complaint(capsys, *uri, f"parent={child.info.run_id}")
    assert "is a training run, not a sweep" in single
    assert f"pass its sweep: --parent {store.sweep}" in single
    assert not (tmp_path / "out").exists()


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from kinopoisk_ft.commands.report import main\n"
        "try: main(['--help'])\n"
        "except SystemExit as e: assert e.code == 0\n"
        "heavy = {'mlflow', 'matplotlib', 'pandas', 'torch', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "language=ru" in done.stdout
