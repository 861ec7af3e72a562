"""Test subcommands, help and versions of the command line."""

from __future__ import annotations

import io
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from kinopoisk_ft import cli
from kinopoisk_ft.commands import predict, ui
from kinopoisk_ft.config.help import suggest_key
from kinopoisk_ft.data.tables import read_lines
from kinopoisk_ft.errors import UserError, suggest_name


def test_without_arguments_ten_lines_of_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 14
    assert max(map(len, lines)) <= 100
    text = "\n".join(lines)
    assert all(f"\n  {name} " in text for name in ("train", *cli.COMMANDS))


def test_every_command_has_a_module_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    for name in cli.COMMANDS:
        with pytest.raises(SystemExit) as stop:
            cli.main([name, "--help"])
        assert stop.value.code == 0
        text = capsys.readouterr().out
        assert f"usage: kinopoisk-ft {name}" in text
        # All commands use the same store by default.
        assert "--uri" not in text or "MLFLOW_TRACKING_URI" in text
    assert cli.main(["train", "--help"]) == 0
    assert "kinopoisk-ft train model=bert" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("word", "fix"), [("repot", "did you mean 'report'?"), ("xyz", "valid names: compare, doctor")]
)
def test_a_mistyped_command(capsys: pytest.CaptureFixture[str], word: str, fix: str) -> None:
    assert cli.main([word, "seed=1"]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"error: there is no command '{word}'\n  to do: {fix}")


def test_versions(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    printed = dict(line.split() for line in capsys.readouterr().out.splitlines())
    assert printed == {
        name: version(name) for name in ("kinopoisk-ft", "torch", "transformers", "peft", "mlflow")
    }


def test_completion_lists_the_options(capfd: pytest.CaptureFixture[str]) -> None:
    line = "kinopoisk-ft adapter=lo"
    query = "import sys; from kinopoisk_ft.cli import main; sys.exit(main(['-sc', 'query=bash']))"
    done = subprocess.run(
        [sys.executable, "-c", query],
        env={"COMP_LINE": line, "COMP_POINT": str(len(line)), "PATH": "/usr/bin:/bin"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "adapter=lora" in done.stdout.split()


def test_ui_opens_the_store_of_this_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    commands: list[list[str]] = []

    def run(command: list[str], check: bool) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        raise KeyboardInterrupt

    monkeypatch.setattr(ui.subprocess, "run", run)
    assert ui.main(["--uri", "sqlite:///here.db", "--port", "5001"]) == 0
    (command,) = commands
    assert command[1:4] == ["-m", "mlflow", "ui"]
    uri = f"sqlite:///{tmp_path / 'here.db'}"
    assert command[4:] == [
        "--backend-store-uri", uri, "--host", "127.0.0.1", "--port", "5001",
    ]  # fmt: skip


KNOWN = ["adapter", "adapter.lr", "model", "model.lr", "model.name", "trainer", "trainer.epochs",
         "trainer.lr", "trainer.min_steps", "trainer.schedule", "trainer/schedule"]  # fmt: skip


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("trainer.learning_rate", "did you mean 'trainer.lr'?"),
        ("learning_rate", "did you mean 'adapter.lr' or 'model.lr' or 'trainer.lr'?"),
        ("lr", "did you mean 'adapter.lr' or 'model.lr' or 'trainer.lr'?"),
        ("trainer.Epochs", "did you mean 'trainer.epochs'?"),
        ("num_train_epochs", "did you mean 'trainer.epochs'?"),
        ("model_name_or_path", "did you mean 'model.name'?"),
        ("modle", "did you mean 'model'?"),
        ("xyz", "list the options of a run with: kinopoisk-ft train --cfg job"),
    ],
)
def test_a_wrong_key_gets_at_most_three_suggestions(key: str, expected: str) -> None:
    assert expected in suggest_key(key, KNOWN)


def test_names_are_compared_without_case() -> None:
    assert suggest_name("LoRA", ["none", "lora"]) == "did you mean 'lora'?"


def test_texts_from_a_file_and_from_standard_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "reviews.txt"
    file.write_text("Хороший фильм.\n\nПлохой фильм.\n", encoding="utf-8")
    table = read_lines(file)
    assert table.frame["text"].tolist() == ["Хороший фильм.", "Плохой фильм."]
    assert table.places() == [f"{file}:1", f"{file}:3"]
    breaks = "а\vб\fв\x85г\u2028д"
    lines = read_lines(Path("input"), io.BytesIO(f"{breaks}\r\n \r\nда\r\n".encode()))
    assert lines.frame["text"].tolist() == [breaks, "да"]
    assert lines.places() == ["input:1", "input:3"]
    old_mac = read_lines(Path("input"), io.BytesIO("один\rдва\r".encode()))
    assert old_mac.frame["text"].tolist() == ["один", "два"]
    stream = io.BytesIO("\ufeffОдин.".encode())
    assert read_lines(Path("input"), stream).frame["text"].tolist() == ["Один."]
    with pytest.raises(UserError, match="there is no text"):
        read_lines(Path("input"), io.BytesIO(b"\n \n"))
    assert predict.main(["model", str(file)]) == 1
    error = capsys.readouterr().err
    assert "did you mean --input?" in error
    assert f"kinopoisk-ft predict model --input {file}" in error
    # A review may be longer than the maximum length of a file name.
    assert predict.main([str(tmp_path), "слово " * 100]) == 1
    assert "did you mean --input?" not in capsys.readouterr().err
