"""Test a whole search: hopeless trials are pruned, and the printed command runs the best config."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from composing import plain
from hydra import compose, initialize_config_dir
from mlflow import MlflowClient
from omegaconf import DictConfig, OmegaConf
from searching import SMALL, search
from sweeping import _here as _here
from sweeping import newest_parent
from sweeping import place as place

from kinopoisk_ft.config.command import KEYS_WITHOUT_EFFECT
from kinopoisk_ft.config.groups import get_conf_dir
from kinopoisk_ft.reporting.runs import collect
from kinopoisk_ft.search.best_trial import BEST, format_command
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


def test_the_command_keeps_a_config_dir_and_what_no_file_can_say(tmp_path: Path) -> None:
    sources = [{"path": "/conf", "provider": "main"}, {"path": "my", "provider": "command-line"}]
    hydra = {"runtime": {"config_sources": sources}, "overrides": {"task": ["~model.x", "seed=1"]}}
    args = shlex.split(format_command(DictConfig({"hydra": hydra}), tmp_path))
    assert args[3:] == [
        "--config-dir", "my", "experiment=best", f'hydra.searchpath=["file://{tmp_path}"]',
        "~model.x",
    ]  # fmt: skip


def test_the_command_finds_a_folder_with_any_name(tmp_path: Path) -> None:
    sources = [{"path": "/conf", "provider": "main"}, {"path": "my", "provider": "command-line"}]
    hydra = {"runtime": {"config_sources": sources}, "overrides": {"task": []}}
    folder = tmp_path / "мои фильмы, 1"
    (folder / BEST).parent.mkdir(parents=True)
    (folder / BEST).write_text("# @package _global_\nseed: 7")
    args = shlex.split(format_command(DictConfig({"hydra": hydra}), folder))
    with initialize_config_dir(str(get_conf_dir()), version_base="1.3", job_name="test"):
        assert compose("train", args[5:]).seed == 7


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
