"""Test the command lines of the benchmarks."""

from __future__ import annotations

import argparse
import runpy
from pathlib import Path
from typing import Any

import pytest
from places import ROOT

# `make bench` runs these scripts with --quick, as the Makefile says.
SCRIPTS = sorted({*(ROOT / "benchmarks").glob("*.py")} - {ROOT / "benchmarks/gpu_check.py"})


class ParsedError(Exception):
    """Raised after a script has parsed its arguments, before it measures anything."""


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda file: file.stem)
def test_quick_needs_no_other_argument(script: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parse = argparse.ArgumentParser.parse_args

    def parse_and_stop(parser: argparse.ArgumentParser, *args: Any) -> None:
        assert parse(parser, *args).quick
        raise ParsedError

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_and_stop)
    monkeypatch.syspath_prepend(str(script.parent))
    monkeypatch.setattr("sys.argv", [str(script), "--quick"])
    with pytest.raises(ParsedError):
        runpy.run_path(str(script), run_name="__main__")
