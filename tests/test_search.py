"""Hyper-parameter search: the space, its proposals, pruning, going on, and the best config."""

from __future__ import annotations

import math
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import optuna
import pytest
from composing import plain
from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra.core.override_parser.overrides_parser import OverridesParser
from mlflow import MlflowClient
from omegaconf import DictConfig, OmegaConf
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from sweeping import DATA, environment, newest_parent, write_reviews

from kinopoisk_ft import cli
from kinopoisk_ft.command import ELSEWHERE
from kinopoisk_ft.conf_path import conf_dir
from kinopoisk_ft.config import Prepared
from kinopoisk_ft.errors import UserError
from kinopoisk_ft.jobs import Outcome, outcomes
from kinopoisk_ft.reporting.collect import collect
from kinopoisk_ft.result import Result
from kinopoisk_ft.search.best import command
from kinopoisk_ft.search.side_by_side import jobs_at_once
from kinopoisk_ft.search.space import read_words, space, usual
from kinopoisk_ft.search.spread import spread
from kinopoisk_ft.search.study import open_study
from kinopoisk_ft.search.trial import Pruned, TrialTracker, watched
from kinopoisk_ft.tracking.base import NoTracker

SMALL = [
    "model=bert_scratch", "model.hidden_size=16", "model.num_layers=2", "model.vocab_size=120",
    "model.max_positions=64", "data.max_length=32", "trainer.precision=fp32",
    "trainer.device=cpu", "trainer.epochs=3",
]  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with reviews."""
    folder = tmp_path_factory.mktemp("search")
    write_reviews(folder)
    return folder


@pytest.fixture(autouse=True)
def _here(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setenv("KINOPOISK_FT_CACHE", str(place / "cache"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def search(*args: str, typed: Sequence[str] = ("sweep=lr_search",)) -> int:
    before = sys.argv
    try:
        return cli.main([*typed, *DATA, *args])
    finally:
        sys.argv = before


def read(*args: str) -> tuple[dict[str, BaseDistribution], DictConfig]:
    """Return the space of a search with these arguments, and the config it starts from."""
    with initialize_config_dir(str(conf_dir()), version_base="1.3", job_name="test"):
        whole = compose("train", ["sweep=lr_search"], return_hydra_config=True)
        params = whole.hydra.sweeper.params
        words = read_words(OverridesParser.create(), params, args)
        base = compose("train", words.fixed, return_hydra_config=True)
    return space(words, base), base


def test_the_space_is_of_the_keys_that_the_adapter_has(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    found, base = read("model=bert_scratch", "adapter=lora")
    assert found["adapter.lr"] == FloatDistribution(2e-4, 2e-2, log=True)
    assert set(found) == {
        "adapter.lr", "adapter.config.r", "adapter.config.lora_dropout", "model.dropout",
    }  # fmt: skip
    assert not caplog.messages
    assert usual(found, base) == {
        "adapter.lr": 2e-3, "adapter.config.r": "8", "adapter.config.lora_dropout": "0.1",
        "model.dropout": "0.1",
    }  # fmt: skip
    found, _ = read("model=bert_scratch", "adapter=none", "model.lr=1e-4", "model.dropout=0.3")
    assert found == {"adapter.lr": FloatDistribution(1e-5, 1e-3, log=True)}
    for key in ("adapter.config.r", "adapter.config.lora_dropout", "model.dropout"):
        assert any(line.startswith(f"not searched: {key},") for line in caplog.messages)


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("trainer.weight_decay=interval(0,0.5)", FloatDistribution(0, 0.5)),
        ("trainer.batch_size=range(8,40,8)", IntDistribution(8, 32, step=8)),
        ("trainer.epochs=tag(log,int(interval(1,8)))",
         IntDistribution(1, 8, log=True)),
        ("trainer/schedule=linear,cosine",
         CategoricalDistribution(["linear", "cosine"])),
    ],
)  # fmt: skip
def test_the_command_line_adds_to_the_space(argument: str, expected: BaseDistribution) -> None:
    found, _ = read("model=bert_scratch", argument)
    assert found[argument.split("=")[0]] == expected
    assert "adapter.lr" in found


def test_the_first_points_meet_each_part_of_each_range() -> None:
    found: dict[str, BaseDistribution] = {
        "lr": FloatDistribution(1e-4, 1e-1, log=True),
        "decay": FloatDistribution(0, 1),
        "tenth": FloatDistribution(0, 0.5, step=0.1),
        "epochs": IntDistribution(1, 6),
        "steps": IntDistribution(1, 64, log=True),
        "rank": CategoricalDistribution(["2", "4", "8"]),
    }
    points = spread(found, 6, seed=0)
    assert sorted(int(math.log10(p["lr"] / 1e-4) * 2) for p in points) == list(range(6))
    assert sorted(int(p["decay"] * 6) for p in points) == list(range(6))
    assert sorted(round(p["tenth"] * 10) for p in points) == list(range(6))
    assert sorted(p["epochs"] for p in points) == list(range(1, 7))
    assert sorted(p["rank"] for p in points) == ["2", "2", "4", "4", "8", "8"]
    for key, dist in found.items():
        assert all(dist._contains(dist.to_internal_repr(p[key])) for p in points)
    assert spread(found, 6, seed=0) == points != spread(found, 6, seed=1)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["adapter.config.rr=choice(1,2)", "adapter=lora"], r"did you mean 'adapter.config.r'"),
        (["seed=1,2"], "seed cannot be searched"),
        (["data.limit=10,20"], "data.limit cannot be searched"),
        (["adapter=none,lora"], "adapter cannot be searched"),
        (["trainer.best_metric=loss,accuracy"], "best_metric cannot be searched"),
        (["trainer.weight_decay=interval(0.5,0.1)"], "no range"),
        (["trainer.weight_decay=tag(log,interval(0,1))"], "0.0 has no logarithm"),
        (["trainer.weight_decay=tag(lg,interval(0.1,1))"], "tags"),
        (["trainer.epochs=range(3,4)"], "does not rise"),
        (["trainer.max_steps=tag(relative,interval(1,2))"], "its value None has no multiples"),
        (["adapter.lr=interval(0.1,1)", "trainer.lr=0.1"], "trainer.lr has a value of its own"),
        (["adapter.lr=0.1", "model.dropout=0"], "nothing is left"),
    ],
)
def test_what_is_no_search_is_told(arguments: list[str], told: str) -> None:
    with pytest.raises(UserError, match=told):
        read("model=bert_scratch", *arguments)


Score = Callable[[Prepared], float]


def pretend(monkeypatch: pytest.MonkeyPatch, score: Score) -> list[tuple[Path, float]]:
    """Let jobs report three evaluations of a made-up score; returns the folder and lr of each."""
    seen: list[tuple[Path, float]] = []

    def run(prepared: Prepared, out_dir: Path) -> Result:
        seen.append((out_dir, prepared.cfg.trainer.lr))
        tracker = watched(NoTracker(uri=None, experiment=""))
        tracker.start("", {}, {"overrides": ""}, folder=Path())
        found = score(prepared)
        for step in (1, 2, 3):
            tracker.metrics({"val_f1_weighted": found * step / 3}, step)
        return Result(0.5, 0.5, 0.5, 1.0, 1.0, 1, 1, "", str(out_dir), found)

    monkeypatch.setattr("kinopoisk_ft.run.run", run)
    return seen


def near_a_tenth(prepared: Prepared) -> float:
    """Be best where lr is a tenth of the adapter's usual one, and fall by the logarithm."""
    return 1 / (1 + abs(math.log10(prepared.cfg.trainer.lr / 1e-4)))


PRETENDED = ["model=bert_scratch", "tracking=none", "model.dropout=0.1"]


@pytest.mark.slow
def test_a_stopped_search_proposes_what_it_would_have(
    monkeypatch: pytest.MonkeyPatch, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = pretend(monkeypatch, near_a_tenth)
    common = [*PRETENDED, "hydra.sweeper.n_spread=2"]
    assert search(*common, "output_dir=whole", "hydra.sweeper.n_trials=5") == 0
    whole = [lr for _, lr in seen]
    assert whole[0] == 1e-3  # the config as it is comes first
    assert len(set(whole)) == 5

    def stop(prepared: Prepared) -> float:
        if len(seen) == 4:
            raise KeyboardInterrupt
        return near_a_tenth(prepared)

    seen = pretend(monkeypatch, stop)
    for n_trials, code in ((2, 0), (5, 130), (5, 0)):
        args = [*common, "output_dir=parts", f"hydra.sweeper.n_trials={n_trials}"]
        assert search(*args) == code
    del seen[3]  # stopped, and done again in the same folder
    assert [lr for _, lr in seen] == whole
    assert [folder.name for folder, _ in seen] == [str(i) for i in range(5)]
    shown = capsys.readouterr().out
    assert "jobs: 2 done, 0 skipped, 0 failed" in shown
    before, after = (outcomes(place / folder) for folder in ("whole", "parts"))
    assert [(o.job, o.status, o.objective) for o in before] == [
        (o.job, o.status, o.objective) for o in after
    ]

    assert search(*PRETENDED, "output_dir=other", "seed=1", "hydra.sweeper.n_trials=2") == 0
    assert seen[-1][1] != whole[1]


@pytest.mark.slow
def test_another_search_in_the_folder_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = pretend(monkeypatch, near_a_tenth)
    args = [*PRETENDED, "output_dir=same", "hydra.sweeper.n_trials=1"]
    assert search(*args) == 0
    assert search(*args, "trainer.epochs=5") == 1
    assert "config.trainer.epochs: 3 there, 5 now" in capsys.readouterr().err
    assert search(*args, "adapter.lr=interval(1e-4,1e-2)") == 1
    assert "space.adapter.lr" in capsys.readouterr().err
    monkeypatch.setattr("kinopoisk_ft.identity.processor", lambda: "another")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert search(*args) == 1
    assert "hardware have changed" in capsys.readouterr().err
    assert len(seen) == 1
    assert search(*args, "rerun=true") == 0
    assert len(seen) == 2


@pytest.mark.slow
def test_a_failed_trial_stops_nothing_and_runs_again(
    monkeypatch: pytest.MonkeyPatch, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(prepared: Prepared) -> float:
        if len(seen) == 2:
            raise UserError("the disk is full")
        return math.nan if len(seen) == 3 else near_a_tenth(prepared)

    seen = pretend(monkeypatch, fail)
    args = [*PRETENDED, "output_dir=failing", "hydra.sweeper.n_trials=4"]
    assert search(*args) == 1
    assert len(seen) == 4
    assert "the disk is full" in capsys.readouterr().out
    assert search(*args) == 0
    assert [folder.name for folder, _ in seen] == ["0", "1", "2", "3", "4", "5"]
    assert [lr for _, lr in seen[1:3]] == [lr for _, lr in seen[4:]]
    assert {outcome.job for outcome in outcomes(place / "failing")} == {0, 3, 4, 5}


def test_evaluations_are_counted_and_told_once(tmp_path: Path) -> None:
    """A median over steps would compare nothing where batch sizes differ."""
    pruner = DictConfig({"_target_": "optuna.pruners.MedianPruner", "n_startup_trials": 1})
    study = open_study(tmp_path, pruner, "minimize")
    study.set_user_attr("metric", "loss")
    none: Any = NoTracker(uri=None, experiment="")
    study.ask()
    first = TrialTracker(none, study, 0)
    for step in (10, 20, 20, 30):
        first.metrics({"val_loss": step / 10, "val_accuracy": 0.0}, step)
    first.metrics({"train_loss": 9.0}, 40)
    assert study.trials[0].intermediate_values == {0: 1.0, 1: 2.0, 2: 3.0}
    study.tell(0, 1.0)
    study.ask()
    second = TrialTracker(none, open_study(tmp_path, pruner), 1)
    second.start("", {}, {"overrides": ""}, folder=Path())
    second.metrics({"val_loss": 0.9}, 7)
    second.metrics({"val_loss": 4.0}, 14)  # its best is still the better one
    study.tell(1, 0.9)
    study.ask()
    third = TrialTracker(none, study, 2)
    third.start("", {}, {"overrides": ""}, folder=Path())
    with pytest.raises(Pruned, match="evaluation 1"):
        third.metrics({"val_loss": 2.0}, 3)


def test_no_pruner_prunes_nothing(tmp_path: Path) -> None:
    study = open_study(tmp_path, None, "maximize")
    assert isinstance(study.pruner, optuna.pruners.NopPruner)


def test_a_journal_that_is_none_is_told(tmp_path: Path) -> None:
    (tmp_path / "search.journal").write_text("no\nno\n")
    with pytest.raises(UserError, match="cannot be read"):
        open_study(tmp_path, None)


@pytest.mark.parametrize(
    ("argument", "told"),
    [
        ("seed=null", "a search needs a number here"),
        ("hydra.sweeper.n_trials=0", "a search needs a number here"),
        ("trainer.epochs=interval(1,8)", "trainer.epochs=1.0: Input should be a valid integer"),
    ],
)
def test_values_of_a_search_are_checked_before_it_begins(
    argument: str, told: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert search(*PRETENDED, argument, "output_dir=wrong") == 1
    assert told in capsys.readouterr().err
    assert not (place / "wrong" / "search.journal").exists()


def test_a_search_without_optuna_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert search(*PRETENDED, "output_dir=bare") == 1
    assert "pip install 'kinopoisk-ft[search]'" in capsys.readouterr().err


def test_hopeless_trials_are_pruned_and_the_best_config_runs(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Real trials of a tiny network, in MLflow: one learning rate learns, the other cannot."""
    args = [
        *SMALL, "adapter=none", "tracking.log_model=false", "output_dir=real", "model.dropout=0.0",
        "adapter.lr=choice(1e-9,1e-2)", "trainer.weight_decay=interval(0,0.1)",
        "hydra.sweeper.n_trials=4", "hydra.sweeper.pruner.n_startup_trials=1",
        "hydra.sweeper.n_spread=3", "model.lr=1e-2",
    ]  # fmt: skip
    assert search(*args) == 0
    shown = capsys.readouterr().out
    found = {outcome.job: outcome for outcome in outcomes(place / "real")}
    pruned = [one for one in found.values() if one.status == "pruned"]
    assert pruned
    assert {rate(one) for one in pruned} == {"1e-09"}
    assert {rate(one) for one in found.values() if one.status == "done"} == {"0.01"}
    check_store(place, found)
    assert search(*args) == 0
    assert {outcome.job: outcome for outcome in outcomes(place / "real")} == found
    check_store(place, found)

    line = next(line for line in shown.splitlines() if line.startswith("to run it: "))
    typed = shlex.split(line.removeprefix("to run it: "))[3:]
    best = int(next(line for line in shown.splitlines() if "best: trial" in line).split()[2][:-1])
    trained = OmegaConf.load(place / "real" / str(best) / "config.yaml")
    with initialize_config_dir(str(conf_dir()), version_base="1.3", job_name="test"):
        path = f"hydra.searchpath=[file://{place / 'real'}]"
        again = compose("train", ["experiment=best", path])
    assert {k: v for k, v in plain(again).items() if k not in ELSEWHERE} == {
        k: v for k, v in plain(DictConfig(trained)).items() if k not in ELSEWHERE
    }
    assert search("tracking=none", "output_dir=again", typed=typed) == 0
    scores = [OmegaConf.load(place / f / "result.json").f1_macro for f in (f"real/{best}", "again")]
    assert scores[0] == scores[1]


def test_the_command_keeps_a_config_dir_and_what_no_file_can_say(tmp_path: Path) -> None:
    sources = [{"path": "/conf", "provider": "main"}, {"path": "my", "provider": "command-line"}]
    hydra = {"runtime": {"config_sources": sources}, "overrides": {"task": ["~model.x", "seed=1"]}}
    args = shlex.split(command(DictConfig({"hydra": hydra}), tmp_path))
    assert args[3:] == [
        "--config-dir", "my", "experiment=best", f"hydra.searchpath=[file://{tmp_path}]",
        "~model.x",
    ]  # fmt: skip


def rate(outcome: Outcome) -> str:
    return next(o for o in outcome.overrides if o.startswith("adapter.lr=")).split("=")[1]


def check_store(place: Path, found: dict[int, Outcome]) -> None:
    """Check that the trials are children of one parent, each with its end."""
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
        evaluations = client.get_metric_history(outcome.run_id, "val_f1_weighted")
        assert len(evaluations) == (3 if outcome.status == "done" else 2)
        assert ("pruned" in tags) == (outcome.status == "pruned")
    collected = collect(client, "lr_search", parent)
    assert {run.run_id for run in collected.runs} == {
        one.run_id for one in found.values() if one.status == "done"
    }
    assert (collected.failed, collected.unfinished) == ([], 0)


SIDE_BY_SIDE = {
    "joblib": ("hydra_plugins.hydra_joblib_launcher", ["hydra.launcher.n_jobs=2"]),
    "submitit_local": ("hydra_plugins.hydra_submitit_launcher", []),
    "ray": ("ray", ["hydra.launcher.num_cpus=0.5"]),
}


@pytest.mark.slow
@pytest.mark.parametrize("launcher", SIDE_BY_SIDE)
def test_parallel_trials_share_one_study(tmp_path: Path, launcher: str) -> None:
    module, options = SIDE_BY_SIDE[launcher]
    if find_spec(module) is None:
        pytest.skip(f"needs {module}")
    write_reviews(tmp_path)
    args = [
        sys.executable, "-m", "kinopoisk_ft", "sweep=lr_search", *DATA, *SMALL, "model.lr=1e-2",
        f"hydra/launcher={launcher}", *options, "output_dir=out",
        "tracking.log_model=false", "adapter.lr=choice(1e-9,1e-2)",
        "hydra.sweeper.pruner.n_startup_trials=1",
    ]  # fmt: skip
    for n_trials in (2, 6):
        done = subprocess.run(
            [*args, f"hydra.sweeper.n_trials={n_trials}"],
            cwd=tmp_path, env=environment(tmp_path), capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    found = outcomes(tmp_path / "out")
    assert [one.job for one in found] == list(range(6))
    assert "pruned" in {one.status for one in found}
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    parent, status = newest_parent(client, "lr_search")
    assert status == "FINISHED"
    runs = [client.get_run(one.run_id) for one in found]
    assert {run.data.tags["mlflow.parentRunId"] for run in runs} == {parent}
    assert runs[1].info.start_time < runs[0].info.end_time


class Counting(BasicLauncher):
    def jobs_at_once(self) -> int:
        return 3


@pytest.mark.parametrize(
    ("launcher", "options", "expected"),
    [
        (Counting, {"array_parallelism": 5}, 3),
        (BasicLauncher, {"array_parallelism": 5, "submitit_folder": "."}, 5),  # Slurm
        (BasicLauncher, {"submitit_folder": ".", "cpus_per_task": 4}, 2),
        (BasicLauncher, {"submitit_folder": ".", "cpus_per_task": None}, 8),
        (BasicLauncher, {}, 1),
    ],
)
def test_as_many_trials_at_once_as_the_launcher_runs_jobs(
    monkeypatch: pytest.MonkeyPatch, launcher: type[BasicLauncher], options: Any, expected: int
) -> None:
    monkeypatch.setattr("joblib.cpu_count", lambda: 8)
    assert jobs_at_once(launcher(), DictConfig(options)) == expected


def test_the_room_of_a_ray_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray", reason="needs the extra 'ray'")
    from kinopoisk_ft.ray_jobs import RayJobs

    machines = [({"CPU": 8.0, "GPU": 2.0}, True), ({"CPU": 3.0}, True), ({"CPU": 64.0}, False)]
    nodes = [{"Resources": has, "Alive": alive} for has, alive in machines]
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 11.0, "GPU": 2.0})
    monkeypatch.setattr(RayJobs, "_connect", lambda *_: None)
    jobs = RayJobs(None)
    asked = [(1, None), (1, 0.5), (2, 0), (8, 1), (16, None)]
    assert [jobs.room(*one) for one in asked] == [2, 4, 5, 1, 1]
