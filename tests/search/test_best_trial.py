"""Test a whole search: hopeless trials are pruned, and the printed command runs the best config."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
from composing import plain
from hydra import compose, initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import create_config_search_path, get_args_parser
from hydra.core.config_loader import ConfigLoader
from hydra.core.config_search_path import SearchPathQuery
from hydra.types import RunMode
from mlflow import MlflowClient
from omegaconf import DictConfig, OmegaConf
from quick import quick
from searching import SMALL, search
from sweeping import _here as _here
from sweeping import newest_parent
from sweeping import place as place

from kinopoisk_ft.config.command import KEYS_WITHOUT_EFFECT
from kinopoisk_ft.config.groups import get_conf_dir
from kinopoisk_ft.reporting.runs import collect
from kinopoisk_ft.search.best_trial import format_command, write_best
from kinopoisk_ft.sweeps.jobs import Outcome, read_outcomes


@pytest.mark.slow
def test_hopeless_trials_are_pruned_and_the_best_config_runs(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Trials of a tiny network are logged to MLflow: it learns with one learning rate only."""
    args = [
        *SMALL, "adapter=none", "tracking.log_model=false", "output_dir=real", "model.dropout=0.0",
        "adapter.lr=choice(1e-9,1e-2)", "trainer.weight_decay=interval(0,0.1)",
        "hydra.sweeper.n_trials=4", "hydra.sweeper.pruner.n_startup_trials=1",
        "hydra.sweeper.n_spread=3", "model.lr=1e-2",
    ]  # fmt: skip
    assert search(*args) == 0
    shown = capsys.readouterr().out
    found = {outcome.job: outcome for outcome in read_outcomes(place / "real")}
    pruned = [one for one in found.values() if one.status == "pruned"]
    assert pruned
    assert {rate(one) for one in pruned} == {"1e-09"}
    assert {rate(one) for one in found.values() if one.status == "done"} == {"0.01"}
    check_store(place, found)
    assert search(*args) == 0
    assert {outcome.job: outcome for outcome in read_outcomes(place / "real")} == found
    check_store(place, found)

    line = next(line for line in shown.splitlines() if line.startswith("to run it: "))
    typed = shlex.split(line.removeprefix("to run it: "))[3:]
    best = int(next(line for line in shown.splitlines() if "best: trial" in line).split()[2][:-1])
    trained = OmegaConf.load(place / "real" / str(best) / "config.yaml")
    with initialize_config_dir(str(get_conf_dir()), version_base="1.3", job_name="test"):
        path = f"hydra.searchpath=[file://{place / 'real'}]"
        again = compose("train", ["experiment=best", path])
    assert {k: v for k, v in plain(again).items() if k not in KEYS_WITHOUT_EFFECT} == {
        k: v for k, v in plain(DictConfig(trained)).items() if k not in KEYS_WITHOUT_EFFECT
    }
    assert again.tuning_trials == 4
    assert search("tracking=none", "output_dir=again", typed=typed) == 0
    scores = [OmegaConf.load(place / f / "result.json").f1_macro for f in (f"real/{best}", "again")]
    assert scores[0] == scores[1]


MINE = {
    "my/my.yaml": """defaults:
  - train
  - override model: tfidf
  - override experiment: mine
  - _self_
trainer:
  epochs: 5
""",
    "my/experiment/mine.yaml": """# @package _global_
trainer:
  log_every: 7
""",
    "replaced/main.yaml": f"""defaults:
  - train
  - _self_
hydra:
  searchpath:
    - file://{get_conf_dir()}
    - file://other
trainer:
  epochs: 5
""",
    "other/model/mine.yaml": """defaults:
  - bert_scratch
num_layers: 3
""",
    "other/own/mine.yaml": "# @package trainer\nlog_every: 9\n",
    "other/experiment/owned.yaml": """# @package _global_
defaults:
  - /own: mine
  - override /model: mine
""",
}
OTHER = ["model=mine", "hydra.searchpath=[file://other]"]


@pytest.mark.parametrize(
    ("flags", "options"),
    quick(
        [
            (["--config-dir", "my", "--config-name", "my"], [*OTHER, "trainer.epochs=2"]),
            ([], [*OTHER, "~model.vocab_size"]),
            (["--config-path", "replaced", "--config-name", "main"],
             ["model=mine", "++trainer.epochs=2", "+trainer.optimizer.maximize=false"]),
            (["--config-dir", "other"], ["model=mine"]),
            ([], [*OTHER, "+own=mine"]),
            (["--config-dir", "other"], ["experiment=owned"]),
        ],
        2,
    ),
)  # fmt: skip
def test_the_command_trains_the_best_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: list[str], options: list[str]
) -> None:
    for name, text in MINE.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    folder = Path("мои фильмы, 1")
    loader, trial = load([*flags, "sweep=lr_search", "output_dir=out", "adapter.lr=0.1", *options])
    write_best(loader, trial, folder, "", tuning_trials=7)
    _, best = load(shlex.split(format_command(trial, folder))[3:])
    assert settings(best) == settings(trial)
    assert (best.trainer.epochs, best.model.num_layers) == (trial.trainer.epochs, 3)
    assert best.hydra.mode != RunMode.MULTIRUN
    assert best.tuning_trials == 7


def load(args: list[str]) -> tuple[ConfigLoader, DictConfig]:
    """Compose the config of a command line, as Hydra does."""
    typed = get_args_parser().parse_args(args)
    folder = Path(typed.config_path or get_conf_dir()).absolute()
    path = create_config_search_path(str(folder))
    if typed.config_dir:
        folder = Path(typed.config_dir).absolute()
        path.prepend("command-line", f"file://{folder}", SearchPathQuery(provider="schema"))
    loader = ConfigLoaderImpl(path)
    name = typed.config_name or "train"
    return loader, loader.load_configuration(name, typed.overrides, RunMode.RUN)


def settings(cfg: DictConfig) -> dict[str, Any]:
    whole: Any = OmegaConf.to_container(cfg)
    return {k: v for k, v in whole.items() if k not in {"hydra", *KEYS_WITHOUT_EFFECT}}


def rate(outcome: Outcome) -> str:
    return next(o for o in outcome.overrides if o.startswith("adapter.lr=")).split("=")[1]


def check_store(place: Path, found: dict[int, Outcome]) -> None:
    """Check that the trials are children of one parent, each with its final status."""
    client = MlflowClient(f"sqlite:///{place / 'mlflow.db'}")
    parent, status = newest_parent(client, "lr_search")
    assert status == "FINISHED"
    experiment = client.get_experiment_by_name("lr_search").experiment_id
    assert len(client.search_runs([experiment])) == len(found) + 1
    assert "best.yaml" in {file.path for file in client.list_artifacts(parent)}
    for outcome in found.values():
        run = client.get_run(outcome.run_id)
        tags = run.data.tags
        assert run.info.status == "FINISHED"
        assert tags["mlflow.parentRunId"] == parent
        assert tags["trial"] == str(outcome.job)
        assert tags["trial.adapter.lr"] == rate(outcome)
        assert {"sweep=lr_search", "hydra.mode=RUN"} <= set(shlex.split(tags["command"]))
        evaluations = client.get_metric_history(outcome.run_id, "val/f1_weighted")
        assert len(evaluations) == (3 if outcome.status == "done" else 2)
        assert ("pruned" in tags) == (outcome.status == "pruned")
    collected = collect(client, "lr_search", parent)
    assert {run.run_id for run in collected.runs} == {
        one.run_id for one in found.values() if one.status == "done"
    }
    assert (collected.failed, collected.unfinished) == ([], 0)
