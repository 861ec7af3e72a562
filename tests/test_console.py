"""Test outputs that are closed, full or not read, and encodings that lack characters."""

from __future__ import annotations

import io
import json
import logging
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pandas as pd
import pytest

from kinopoisk_ft.console import ERROR_HANDLER, handle_errors, open_terminal, prepare_output

# A command like the others, without their imports: non-ASCII text, work, and more text.
COMMAND = """
import os, pathlib, sys
from kinopoisk_ft.console import handle_errors
@handle_errors
def main():
    assert sys.stdin.buffer.readable()
    for _ in range(3000):
        print("0,91 ± 0,02 − Фильм ∀")
    print("error: Фильм", file=sys.stderr)
    pathlib.Path("done").write_text("done")
    print(main.__name__, os.environ.get("GOMP_SPINCOUNT"), flush=True)
    return 0
sys.exit(main())
"""


def command(
    folder: Path, shell: str = "{}", **environment: str
) -> subprocess.CompletedProcess[bytes]:
    """Run a line in bash, in which `{}` stands for the command."""
    (folder / "command.py").write_text(COMMAND, encoding="utf-8")
    done = subprocess.run(
        ["bash", "-c", "set -o pipefail; " + shell.format(f"'{sys.executable}' command.py")],
        cwd=folder, capture_output=True, env={**os.environ, **environment},
    )  # fmt: skip
    assert (folder / "done").exists()
    assert b"Traceback" not in done.stderr
    return done


@pytest.mark.parametrize(
    "shell", ["{} | head -1", "{} >&-", "{} 2>&-", "{} <&-", "{} >&- 2>&- <&-", "{} 2>&1 | head -1"]
)
def test_streams_that_nobody_uses_change_nothing(shell: str, tmp_path: Path) -> None:
    assert command(tmp_path, shell).returncode == 0


def test_a_full_output_is_reported_once(tmp_path: Path) -> None:
    done = command(tmp_path, "{} >/dev/full")
    assert done.returncode == 1
    assert done.stderr.decode().splitlines()[1:] == [
        "error: the output is incomplete: No space left on device"
    ]


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [
        ("ascii", r"0,91 +/- 0,02 - \u0424\u0438\u043b\u044c\u043c \u2200"),
        ("cp1251", r"0,91 ± 0,02 - Фильм \u2200"),
        ("utf-8", "0,91 ± 0,02 − Фильм ∀"),
    ],
)
def test_an_encoding_shows_what_it_can(encoding: str, shown: str, tmp_path: Path) -> None:
    done = command(tmp_path, PYTHONIOENCODING=encoding)
    assert done.returncode == 0
    assert done.stdout.decode(encoding).splitlines()[0] == shown


def test_the_c_locale_is_left_for_utf_8(tmp_path: Path) -> None:
    done = command(tmp_path, LC_ALL="C", PYTHONUTF8="0")
    assert done.stdout.decode("utf-8").splitlines()[0] == "0,91 ± 0,02 − Фильм ∀"


@pytest.mark.parametrize(
    ("environment", "count"),
    [({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "None")],
)
def test_waiting_threads_sleep_early_unless_the_user_decides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], count: str
) -> None:
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    assert command(tmp_path, **environment).stdout.decode().splitlines()[-1] == f"main {count}"


def test_an_interrupt_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    @handle_errors
    def main(argv: list[str]) -> None:
        raise KeyboardInterrupt

    assert main([]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_a_full_disk_is_no_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    @handle_errors
    def main(argv: list[str]) -> None:
        Path(argv[0]).write_text("x" * 10_000)

    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    assert main(["/dev/full"]) == 1
    assert capsys.readouterr().err.startswith("error: the output cannot be written: No space left")


def test_the_error_handler_only_encodes() -> None:
    with pytest.raises(UnicodeDecodeError):
        b"\xff".decode("utf-8", ERROR_HANDLER)
    stream = io.TextIOWrapper(io.BytesIO(), "ascii", ERROR_HANDLER)
    # A lone surrogate, which no encoding can represent.
    stream.write("\udcd0")
    stream.flush()


@pytest.mark.parametrize("module", ["kinopoisk_ft", "kinopoisk_ft.predict"])
def test_help_that_nobody_reads_ends_without_an_error(module: str) -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", module, "--help"], stdout=write, stderr=subprocess.PIPE, text=True
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (0, "")


SURROUNDINGS = [
    ("{}", {"LC_ALL": "C", "PYTHONUTF8": "0"}),
    ("{} | head -1", {"PYTHONIOENCODING": "cp1251"}),
    ("{} >&- 2>&-", {"PYTHONIOENCODING": "ascii", "LC_ALL": "C"}),
]


@pytest.mark.slow
@pytest.mark.parametrize(("shell", "environment"), SURROUNDINGS, ids=["C", "cp1251", "ascii"])
def test_every_command_works_with_cyrillic_names(
    shell: str, environment: dict[str, str], tmp_path: Path
) -> None:
    folder = tmp_path / "опыты"
    (folder / "мои" / "experiment").mkdir(parents=True)
    (folder / "мои" / "experiment" / "mine.yaml").write_text(
        "# @package _global_\ndata: {path: данные/отзывы.jsonl, text_column: текст}\n", "utf-8"
    )
    (folder / "данные").mkdir()
    words = ("плохой", "хороший")
    rows = [{"текст": f"{words[i % 2]} фильм {i}", "метка": words[i % 2]} for i in range(60)]
    pd.DataFrame(rows).to_json(
        folder / "данные" / "отзывы.jsonl", orient="records", lines=True, force_ascii=False
    )

    def run(module: str, *args: str) -> None:
        quoted = " ".join(f"'{arg}'" for arg in (sys.executable, "-m", module, *args))
        done = subprocess.run(
            ["bash", "-c", "set -o pipefail; " + shell.format(quoted)], cwd=folder,
            capture_output=True, env={**os.environ, **environment, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr.decode(errors="replace")
        assert b"Traceback" not in done.stderr

    run("kinopoisk_ft", "--config-dir", "мои", "model=tfidf", "data=file", "experiment=mine",
        'data.label_column="метка"', 'output_dir="запуск"')  # fmt: skip
    assert json.loads((folder / "запуск" / "result.json").read_text("utf-8"))["accuracy"] == 1
    run("kinopoisk_ft.report", "--language", "ru", "--output", "отчёт")
    assert "хороший" in (folder / "отчёт" / "comparison.html").read_text("utf-8")
    run("kinopoisk_ft.predict", "запуск/model", "хороший − фильм", "--output", "метки.csv")
    assert pd.read_csv(folder / "метки.csv")["predicted_label"].tolist() == ["хороший"]
    run("kinopoisk_ft.sync", "запуск")


def test_a_notebook_is_no_terminal_although_it_wants_colours(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert not open_terminal(io.StringIO()).is_terminal


def test_a_full_disk_of_the_log_prints_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(logging, "raiseExceptions", True)
    prepare_output()
    logger = logging.Logger("full")
    handler = logging.FileHandler("/dev/full")
    logger.addHandler(handler)
    logger.warning("a message")
    with suppress(OSError):
        handler.close()
    assert capfd.readouterr().err == ""


@pytest.mark.slow
def test_mlflow_s_warnings_about_its_own_classes_are_hidden() -> None:
    # MLflow warns when it is imported, so this needs a new process.
    code = "from kinopoisk_ft.console import silence_libraries; silence_libraries(); "
    shown = subprocess.run(
        [sys.executable, "-c", code + "import mlflow.pyfunc"], capture_output=True, text=True
    )
    assert (shown.returncode, shown.stderr) == (0, "")
