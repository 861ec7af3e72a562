"""Test that the command that a run records runs the same job again."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import tiny
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st
from mlflow import MlflowClient
from mlflow.entities import Run
from omegaconf import OmegaConf

from kinopoisk_ft.cli import main
from kinopoisk_ft.config.command import format_override
from kinopoisk_ft.config.prepared import get_overrides
from kinopoisk_ft.provenance import IDENTITY
from kinopoisk_ft.reporting.page.reproduce import _command
from kinopoisk_ft.reporting.runs import read_trained

FILES = {
    "my configs/sweep/mine.yaml": """# @package _global_
data:
  limit: 70
hydra:
  mode: MULTIRUN
  sweeper:
    params:
      experiment: mine
""",
    "my configs/experiment/mine.yaml": """# @package _global_
defaults:
  - override /model: tfidf
  - override /data: file
data:
  path: ${oc.env:REVIEWS}
  text_column: text
  label_column: mark
""",
    "more/adapter/other.yaml": "_target_: kinopoisk_ft.adapters.plain.Full\nlr: 0.1\n",
}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with reviews and folders of configs."""
    texts, labels = tiny.reviews(80)
    frame = pd.DataFrame({"text": [f"{t} {i}" for i, t in enumerate(texts)], "mark": labels})
    frame.to_json(tmp_path / "it's  reviews.jsonl", orient="records", lines=True, force_ascii=False)
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KINOPOISK_FT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("REVIEWS", "it's  reviews.jsonl")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(sys, "argv", sys.argv)
    return tmp_path


def run(*args: str) -> int:
    try:
        return main(list(args))
    except SystemExit as stop:
        return int(stop.code or 0)


def runs(place: Path) -> list[Run]:
    client = MlflowClient(f"sqlite:///{place / 'mlflow.db'}")
    experiments = [one.experiment_id for one in client.search_experiments()]
    found = client.search_runs(experiments, "tags.`kinopoisk_ft.kind` = 'train'")
    return sorted(found, key=lambda one: one.info.start_time)


def settings(one: Run) -> dict[str, Any]:
    where = ("output_dir", "tracking.", "rerun", "trainer.checkpoint_every")
    return {k: v for k, v in one.data.params.items() if not k.startswith(where)}


def here(command: str, place: Path) -> None:
    assert run(*shlex.split(command.removeprefix("python -m kinopoisk_ft "))) == 0


def in_a_shell(command: str, place: Path) -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        command, shell=True, cwd=place, env={**os.environ, "PATH": path},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


A_SWEEP = ["sweep=mine", "seed=5"], "--config-dir 'my configs' experiment=mine sweep=mine"
A_DRAWN_SEED = ["experiment=mine", "seed=null", "data.split=random"], "--config-dir 'my configs'"
TWO_FOLDERS = ["experiment=mine", "adapter=other", "hydra.searchpath=[more]"], "searchpath=[more]"


@pytest.mark.parametrize(
    ("job", "repeat"),
    [
        pytest.param(A_SWEEP, here, id="a sweep", marks=pytest.mark.slow),
        pytest.param(A_SWEEP, in_a_shell, id="a sweep, shell", marks=pytest.mark.slow),
        pytest.param(A_DRAWN_SEED, in_a_shell, id="a drawn seed", marks=pytest.mark.slow),
        pytest.param(TWO_FOLDERS, in_a_shell, id="two folders", marks=pytest.mark.slow),
    ],
)
def test_command_runs_the_same_job(
    place: Path, monkeypatch: pytest.MonkeyPatch,
    job: tuple[list[str], str], repeat: Callable[[str, Path], None],
) -> None:  # fmt: skip
    args, said = job
    assert run("--config-dir", "my configs", *args, "output_dir=out", "rerun=true") == 0
    (first,) = runs(place)
    command = _command(read_trained(first))
    monkeypatch.delenv("REVIEWS")
    repeat(command, place)
    _, again = runs(place)
    assert settings(again) == settings(first)
    assert again.data.tags[IDENTITY] == first.data.tags[IDENTITY]
    assert said in command.replace("hydra.mode=RUN ", "")
    assert "output_dir" not in command


def test_command_of_a_run_in_several_processes(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "kinopoisk_ft.config.command.torchrun", SimpleNamespace(world_size=lambda: 2)
    )
    assert run("--config-dir", "my configs", "experiment=mine", "output_dir=out") == 0
    (found,) = runs(place)
    start = "torchrun --nproc-per-node 2 -m kinopoisk_ft --config-dir 'my configs' experiment=mine"
    assert _command(read_trained(found)).startswith(start)


@given(
    st.one_of(
        st.text(st.sampled_from("ab1 '\"\\,=[]{}():$.-фyesnull"), max_size=12), st.booleans(),
        st.none(), st.integers(), st.floats(allow_nan=False),
    )
)  # fmt: skip
def test_hydra_reads_formatted_overrides_as_the_same_values(value: Any) -> None:
    if isinstance(value, str) and "${" in value:
        # Resolved values contain no interpolation.
        return
    read = OverridesParser.create().parse_override(format_override("a.b", value)).value()
    assert (read, type(read)) == (value, type(value))


def test_other_shell_commands_in_a_store_are_not_shown(place: Path) -> None:
    """Other commands in the tag are not shown, and shell syntax in it is quoted."""
    assert run("--config-dir", "my configs", "experiment=mine", "output_dir=out") == 0
    (found,) = runs(place)
    tags = found.data.tags
    tags["command"] = "rm -rf / ; python -m kinopoisk_ft"
    assert _command(read_trained(found)) == "python -m kinopoisk_ft experiment=mine"
    tags["command"] = "python -m kinopoisk_ft seed=1; rm -rf /"
    assert shlex.split(_command(read_trained(found)))[3:] == ["seed=1;", "rm", "-rf", "/"]
    assert ";" not in _command(read_trained(found)).replace("'seed=1;'", "")


def test_overrides_with_interpolations_stay_as_they_were_written() -> None:
    hydra = OmegaConf.create({"overrides": {"task": ["adapter.lr=${nowhere}", "seed=1"]}})
    assert get_overrides(hydra) == ["adapter.lr=${nowhere}", "seed=1"]
