"""Test that sweeps skip finished jobs and report failures."""

from __future__ import annotations

import json
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from composing import compose_config
from mlflow import MlflowClient
from omegaconf import OmegaConf
from sweeping import DATA, newest_parent, write_reviews
from sweeping import _here as _here
from sweeping import place as place
from tracked import offline

from kinopoisk_ft import cli, provenance, run_folder
from kinopoisk_ft.config.prepared import Prepared
from kinopoisk_ft.config.validate import prepare
from kinopoisk_ft.errors import UserError
from kinopoisk_ft.reporting.runs import collect
from kinopoisk_ft.run import run
from kinopoisk_ft.sweeps import jobs
from kinopoisk_ft.tracking.event_log import find_logs
from kinopoisk_ft.tracking.mlflow import MlflowTracker
from kinopoisk_ft.tracking.offline import OfflineTracker
from kinopoisk_ft.tracking.sweep import ParentRun
from kinopoisk_ft.training.distributed import torchrun
from kinopoisk_ft.training.signals import Stopped


class Unforeseen(BaseException):
    """An exception that no job catches."""


def sweep(*args: str, model: str = "tfidf") -> int:
    before = sys.argv
    try:
        return cli.main(["-m", *DATA, f"model={model}", *args])
    finally:
        sys.argv = before


def test_finished_jobs_are_skipped_and_reported(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    client = MlflowClient(f"sqlite:///{place / 'mlflow.db'}")
    common = ["tracking.experiment=again", "tracking.log_model=false", "result_json=r.json"]
    assert sweep(*common, "seed=0,1", "output_dir=one") == 0
    assert "jobs: 2 done, 0 skipped, 0 failed" in capsys.readouterr().out
    trained = [json.loads((place / f"r.{i}.json").read_text())["run_id"] for i in (0, 1)]

    assert sweep(*common, "seed=1,2", "output_dir=two") == 0
    shown = capsys.readouterr().out
    assert "jobs: 1 done, 1 skipped, 0 failed" in shown
    assert any("skipped" in line and trained[1] in line for line in shown.splitlines())
    assert json.loads((place / "r.0.json").read_text())["run_id"] == trained[1]
    parent, status = newest_parent(client, "again")
    assert status == "FINISHED"
    held = collect(client, "again", parent).runs
    assert {run.seed for run in held} == {"1", "2"}
    assert trained[1] in {run.run_id for run in held}
    assert len(collect(client, "again").runs) == 3

    assert sweep(*common, "seed=0,1", "output_dir=one") == 0
    assert "all jobs were finished already; use rerun=true" in capsys.readouterr().out
    assert {run.run_id for run in collect(client, "again", newest_parent(client, "again")[0]).runs
            } == set(trained)  # fmt: skip
    assert sweep(*common, "seed=0", "output_dir=one", "rerun=true") == 0
    assert "jobs: 1 done, 0 skipped" in capsys.readouterr().out


def test_a_failed_job_is_reported_and_runs_again(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["tracking.experiment=holes", "tracking.log_model=false", "adapter=lora,none"]
    for others in ("1 done, 0 skipped", "0 done, 1 skipped"):
        assert sweep(*args, "output_dir=holes") == 1
        shown = capsys.readouterr()
        assert "no layers to adapt" in shown.err
        assert f"jobs: {others}, 1 failed" in shown.out
        assert "no layers to adapt" in shown.out.split("overrides")[-1]
        client = MlflowClient(f"sqlite:///{place / 'mlflow.db'}")
        assert newest_parent(client, "holes")[1] == "FAILED"


@pytest.mark.parametrize(
    ("raised", "code", "status"),
    [
        (KeyboardInterrupt(), 130, "KILLED"),
        pytest.param(Stopped(signal.SIGTERM), 143, "KILLED", marks=pytest.mark.slow),
        (Unforeseen(), None, "FAILED"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_the_parent_is_closed_however_a_sweep_ends(
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    raised: BaseException,
    code: int | None,
    status: str,
) -> None:
    def end(*_: object, **__: object) -> None:
        raise raised

    monkeypatch.setattr("kinopoisk_ft.sweeps.jobs.run_job", end)
    args = ["tracking.experiment=ended", "output_dir=ended"]
    if code is not None:
        assert sweep(*args) == code
    else:
        with pytest.raises(Unforeseen):
            sweep(*args)
    client = MlflowClient(f"sqlite:///{place / 'mlflow.db'}")
    assert newest_parent(client, "ended")[1] == status


# Runs the command line; the second job is killed once it has trained.
KILLED = """
import itertools, os, signal, sys
from kinopoisk_ft import cli
from kinopoisk_ft.tasks import finetune

record, calls = finetune.record, itertools.count()

def killed(*args):
    if next(calls) == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return record(*args)

finetune.record = killed
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("seeds", ["0,1,2", "0,1,3"])
def test_a_killed_sweep_that_resumes_has_all_its_jobs(
    place: Path, capsys: pytest.CaptureFixture[str], seeds: str
) -> None:
    name = f"killed{seeds[-1]}"
    args = [f"tracking.experiment={name}", "tracking.log_model=false", f"output_dir={name}"]
    command = [sys.executable, "-c", KILLED, "-m", *DATA, "model=tfidf", *args, "seed=0,1,2"]
    assert subprocess.run(command, cwd=place, check=False).returncode == -signal.SIGKILL
    (stopped,) = find_logs(place / name / "1")

    assert sweep(*args, f"seed={seeds}") == 0
    assert "jobs: 2 done, 1 skipped, 0 failed" in capsys.readouterr().out
    client = MlflowClient(f"sqlite:///{place / 'mlflow.db'}")
    held = collect(client, name, newest_parent(client, name)[0])
    assert {run.seed for run in held.runs} == set(seeds.split(","))
    assert stopped.state.run_id in {run.run_id for run in held.runs}
    assert (held.superseded, held.unfinished) == (0, 0)
    experiment = client.get_experiment_by_name(name).experiment_id
    sweeps = client.search_runs([experiment], "tags.`kinopoisk_ft.kind` = 'sweep'")
    assert sorted(one.info.status for one in sweeps) == ["FINISHED", "KILLED"]


def test_workers_get_the_parent_without_its_tracker(place: Path) -> None:
    callback = ParentRun()
    uri = f"sqlite:///{place / 'mlflow.db'}"
    callback.tracker = MlflowTracker(uri=uri, artifacts=None, experiment="handed", log_model=False)
    callback.tracker.start("sweep", {}, {}, folder=place / "handed")
    assert pickle.loads(pickle.dumps(callback)).tracker is None
    callback.close("FINISHED")


def test_an_offline_sweep_asks_no_store_for_a_summary(tmp_path: Path) -> None:
    callback = ParentRun()
    # No program listens on port 9 (discard).
    callback.tracker = offline("http://127.0.0.1:9")
    callback.run_id = callback.tracker.start("sweep", {}, {}, folder=tmp_path)
    assert callback.find_store() is None
    callback.close("FINISHED")
    callback.run_id = "1a2b"
    assert callback.find_store() == ("http://127.0.0.1:9", "1a2b")


def test_a_store_that_cannot_be_opened_ends_a_sweep_at_once(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit, match="1"):
        sweep("seed=0,1", "output_dir=shut", "tracking.uri=sqlite:////proc/no/mlflow.db")
    assert capsys.readouterr().err.count("cannot be opened") == 1


def prepared(*overrides: str) -> Prepared:
    return prepare(compose_config([*DATA, "model=tfidf", *overrides]))


def identity(*overrides: str) -> str:
    return prepared(*overrides).tags[provenance.IDENTITY]


def test_identity_is_of_what_decides_a_result(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = identity()
    same = ["output_dir=x", "result_json=x", "rerun=true", "tracking=none",
            "trainer.checkpoint_every=9", "trainer.process_timeout=9"]  # fmt: skip
    assert [identity(change) for change in same] == [first] * len(same)
    changes = [
        "seed=1",
        "trainer.lr=0.5",
        "data.limit=70",
        "adapter=head",
        "trainer.budget=steps:9",
    ]
    others = {identity(change) for change in changes}
    assert len(others | {first}) == len(changes) + 1
    with monkeypatch.context() as patch:
        patch.setattr(torchrun, "world_size", lambda: 2)
        assert identity() != first
    write_reviews(place, 82)
    assert identity() != first
    write_reviews(place)
    assert identity() == first
    monkeypatch.setattr(provenance, "get_processor", lambda: "another")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert identity() != first


def test_identity_covers_a_file_in_the_home_folder(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(place))
    monkeypatch.setenv("USERPROFILE", str(place))
    first = identity("data.path='~/reviews.jsonl'")
    write_reviews(place, 82)
    assert identity("data.path='~/reviews.jsonl'") != first
    write_reviews(place)


def test_content_is_of_bytes_and_names(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    file = tmp_path / "sub" / "a.py"
    file.write_text("x = 1\n")
    first = provenance.digest_content(tmp_path, "*.py")
    (tmp_path / "notes.md").write_text("told")
    assert provenance.digest_content(tmp_path, "*.py") == first
    file.write_text("x = 22\n")
    second = provenance.digest_content(tmp_path, "*.py")
    file.rename(tmp_path / "sub" / "b.py")
    assert len({first, second, provenance.digest_content(tmp_path, "*.py")}) == 3


def test_a_folder_with_very_many_files_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(provenance, "MOST_FILES", 2)
    for name in "abc":
        provenance.digest_content(tmp_path)
        (tmp_path / name).touch()
    with pytest.raises(UserError, match="more than 2 files"):
        provenance.digest_content(tmp_path)


def test_the_recorded_config_has_no_password(tmp_path: Path) -> None:
    run(prepared("tracking=offline", "tracking.uri='http://me:secret@host'"), tmp_path)
    assert "uri: http://me:***@host" in (tmp_path / "config.yaml").read_text()


def test_a_finished_run_without_its_result_is_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OfflineTracker, "find", lambda *_: {"kinopoisk_ft.kind": "train"})
    assert jobs.find_finished(prepared("tracking=offline"), Path()) is None


@pytest.mark.slow
def test_a_second_sweep_in_a_folder_changes_nothing(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run_folder, "LOCK_TIMEOUT", 0.0)
    jobs.Outcome(0, "unfinished", ["seed=0"]).write(place / "used")
    first = ParentRun()
    first.lock(OmegaConf.create({"hydra": {"sweep": {"dir": str(place / "used")}}}))
    for tracking in ("none", "offline"):
        with pytest.raises(SystemExit, match="1"):
            sweep(f"tracking={tracking}", "output_dir=used")
        assert "another process is using this output folder" in capsys.readouterr().err
    assert [path.name for path in (place / "used").iterdir()] == ["jobs"]
    assert jobs.read_outcomes(place / "used") == [jobs.Outcome(0, "unfinished", ["seed=0"])]
    first.close("FINISHED")
    assert sweep("tracking=none", "output_dir=used") == 0


def test_pretraining_is_never_skipped() -> None:
    task = ["task=pretrain", "task.save_to=base", "model=bert_scratch"]
    assert (
        jobs.find_finished(prepared("tracking.uri=sqlite:////proc/no/mlflow.db", *task), Path())
        is None
    )


def test_jobs_that_would_save_a_pretrained_model_to_the_same_folder_are_refused(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def plan(folder: str, seed: str = "seed=0,1") -> str:
        task = ["task=pretrain", "trainer.best_metric=loss", f"task.save_to={folder}"]
        with pytest.raises(SystemExit) as ended:
            sweep(*task, seed, "dry_run=true", model="bert_scratch")
        assert ended.value.code == (folder == "base")
        return capsys.readouterr().err

    assert "jobs 0 and 1 would save their models to the same folder" in plan("base")
    assert not plan("base_${seed}")
    assert not plan("base_${seed}", "seed=null,null")


def test_a_search_adds_the_number_of_the_trial_to_the_folder_of_a_pretrained_model() -> None:
    options = ["task=pretrain", "task.save_to=bases/bert/", "model=bert_scratch"]
    assert prepared("sweep=lr_search", *options).cfg.task.save_to == "bases/bert.0"
    assert prepared(*options).cfg.task.save_to == "bases/bert/"


def test_a_folder_as_the_result_file_of_a_sweep_is_left_for_the_run_to_refuse() -> None:
    assert prepared("sweep=lr_search", "result_json=.").result_file == Path()


def test_a_parent_of_another_store_is_refused(place: Path) -> None:
    uri = f"sqlite:///{place / 'mlflow.db'}"
    tracker = MlflowTracker(uri=uri, artifacts=None, experiment="lost", log_model=False)
    with pytest.raises(UserError, match="parent run nowhere is not in this MLflow store"):
        tracker.start("name", {}, {}, "nowhere", folder=place / "lost")
    assert not list((place / "lost").rglob("*.jsonl"))
