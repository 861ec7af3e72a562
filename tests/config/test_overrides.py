"""Test that messages about overrides that Hydra misreads contain the correct command."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf

from kinopoisk_ft.cli import main
from kinopoisk_ft.config.help import check_commas, explain_error
from kinopoisk_ft.errors import UserError

UNREADABLE = [
    "a=b", "f(x)", "reviews (1).csv", "it's.csv", '"half', "фильм", "/tmp/фильмы/о них.csv", "x#y",
    "x;y", "x!", "[half", "{x}", "“x”", "№1", "a\\'b", "a=b\\", "a,b(c",
]  # fmt: skip


def explained(*args: str) -> str:
    parser = OverridesParser.create()
    with pytest.raises(HydraException) as caught:
        parser.parse_overrides(list(args))
    message = explain_error(caught.value, list(args))
    assert message is not None
    return message


def corrected(message: str, key: str) -> str:
    """Return the value that Hydra reads from a message's command, after the shell's quoting."""
    (command,) = [
        word for word in shlex.split(message.partition(": ")[2]) if word.startswith(f"{key}=")
    ]
    found = OverridesParser.create().parse_override(command.removesuffix(";")).value()
    assert isinstance(found, str)
    return found


@pytest.mark.parametrize("value", UNREADABLE)
def test_the_message_quotes_a_value_that_needs_quotes(value: str) -> None:
    message = explained(f"data.path={value}")
    assert corrected(message.partition("to do: ")[2], "data.path") == value
    assert "grammar" not in message


def test_the_quotes_are_those_of_the_documentation() -> None:
    assert """'data.path="/tmp/мой файл.csv"'""" in explained("data.path=/tmp/мой файл.csv")


def test_a_home_folder_is_expanded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shells do not expand ~ inside quotes."""
    monkeypatch.setenv("HOME", "/home/me")
    assert "/home/me/x.csv" in explained("data.path=~/x.csv")


def test_the_message_joins_a_path_with_spaces() -> None:
    message = explained("data.path=/tmp/my", "фильмы (1).csv", "model=tfidf")
    assert "'фильмы (1).csv' is not an override" in message
    assert corrected(message.partition("quote both")[2], "data.path") == "/tmp/my фильмы (1).csv"


@pytest.mark.parametrize("arg", ["", "bert", "кл=1", "a b=1"])
def test_an_argument_that_is_not_an_override_is_explained(arg: str) -> None:
    assert "group=option" in explained(arg)


def test_a_file_name_with_a_comma_is_one_value(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a,b.csv").touch()
    check_commas(["-m", "seed=0,1", "data.path=c,d.csv", "data.path='a,b.csv'", "data.path=[a,b]"])
    for args in (["data.path=a,b.csv"], ["-m", "data.path=a,b.csv"]):
        with pytest.raises(UserError, match="reads it as several values of a sweep") as caught:
            check_commas(args)
        assert """'data.path="a,b.csv"'""" in str(caught.value)


@pytest.mark.parametrize("key", ["output_dir", "result_json"])
def test_output_options_take_one_value(key: str) -> None:
    with pytest.raises(UserError, match=re.escape(f"""'{key}="x,y"'""")):
        check_commas(["-m", f"{key}=x,y"])


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["data.text_column=a,b"], """'data.text_column="a,b"'; for a list: """),
        (["data.path=фильм.csv"], """'data.path="фильм.csv"'"""),
        (["=x"], "needs a name before its '='"),
        (["--config-name=nope"], "there is no config 'nope'"),
        ([f"trainer.lr={'[' * 300}{']' * 300}"], "values that are nested too deeply"),
    ],
)
def test_the_command_line_prints_the_explanation(
    args: list[str], told: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", sys.argv)
    assert main(args) == 2
    assert told in capsys.readouterr().err


@pytest.mark.parametrize("args", [[], ["-m"], ["--cfg", "job"], ["model=tfidf"]])
def test_few_arguments_end_in_a_result_or_a_message(
    args: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """There is no network, so the data set cannot be downloaded from the hub."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", sys.argv)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    try:
        code = main(args)
    except SystemExit as stop:
        code = int(str(stop.code))
    shown = capsys.readouterr()
    # Without arguments, the commands are listed.
    assert code == (0 if "--cfg" in args or not args else 1)
    assert ("data=demo" in shown.err) == (code == 1)
    assert "Traceback" not in shown.err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
def test_errors_that_a_config_did_not_cause_are_not_explained() -> None:
    # Hydra writes files with OmegaConf, too.
    with pytest.raises(OSError, match="No space left") as full:
        OmegaConf.save(OmegaConf.create({"key": 1}), "/dev/full")
    for error in (full.value, RecursionError("maximum recursion depth exceeded"), KeyError("key")):
        assert explain_error(error, []) is None
