"""Test that the example in the README prints what the README shows."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from places import ROOT

from kinopoisk_ft.cli import main


def test_the_first_example_prints_what_the_readme_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The model's answers are correct; new bundled reviews require new figures in the README."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    readme = (ROOT / "README.md").read_text("utf-8").replace("\\\n", "")
    assert re.search(r"Good .* В целом картина мне понравилась", readme)
    assert re.search(r"Bad .* В целом картина мне не понравилась", readme)
    examples = readme.split("    $ kinopoisk-ft ")[1:]
    assert [example.split()[0] for example in examples] == ["train", "predict"]
    for example in examples:
        command, *shown = example.split("\n\n")[0].splitlines()
        assert main(shlex.split(command)) == 0
        printed = capsys.readouterr().out
        for line in shown:
            assert line.strip() == "..." or line[4:] in printed
