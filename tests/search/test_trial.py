"""Test trials with invented scores: an interrupted search resumes, and failures are reported."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from omegaconf import OmegaConf
from searching import search
from sweeping import _here as _here
from sweeping import place as place

from kinopoisk_ft import run_folder
from kinopoisk_ft.config.prepared import Prepared
from kinopoisk_ft.errors import UserError
from kinopoisk_ft.run_folder import RunFolder
from kinopoisk_ft.search.study import JOURNAL, open_study
from kinopoisk_ft.search.trial import watch_trial
from kinopoisk_ft.sweeps.jobs import Outcome, read_outcomes, record_lost_jobs
from kinopoisk_ft.tasks.result import Result
from kinopoisk_ft.tracking.base import Tracker
from kinopoisk_ft.tracking.sweep import ParentRun

Score = Callable[[Prepared], float]


def pretend(monkeypatch: pytest.MonkeyPatch, score: Score) -> list[tuple[Path, float]]:
    """Let jobs report three evaluations of an invented score; return their folders and lr."""
    seen: list[tuple[Path, float]] = []

    def run(prepared: Prepared, out_dir: Path) -> Result:
        seen.append((out_dir, prepared.cfg.trainer.lr))
        tracker = watch_trial(Tracker(uri=None, experiment=""), prepared.job)
        tracker.start("", {}, {"overrides": ""}, folder=Path())
        found = score(prepared)
        for step in (1, 2, 3):
            tracker.metrics({"val_f1_weighted": found * step / 3}, step)
        return Result({}, 1.0, 1.0, 1, 1, "", str(out_dir), found)

    monkeypatch.setattr("kinopoisk_ft.sweeps.jobs.run", run)
    return seen


def near_a_tenth(prepared: Prepared) -> float:
    """Return a score that is best at a tenth of the usual lr, and falls with the log ratio."""
    return 1 / (1 + abs(math.log10(prepared.cfg.trainer.lr / 1e-4)))


PRETENDED = ["model=bert_scratch", "tracking=none", "model.dropout=0.1"]


@pytest.mark.slow
def test_a_stopped_search_resumes_with_the_same_trials(
    monkeypatch: pytest.MonkeyPatch, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = pretend(monkeypatch, near_a_tenth)
    common = [*PRETENDED, "hydra.sweeper.n_spread=2"]
    assert search(*common, "output_dir=whole", "hydra.sweeper.n_trials=5") == 0
    whole = [lr for _, lr in seen]
    # The first trial is the unchanged config.
    assert whole[0] == 1e-3
    assert len(set(whole)) == 5

    def stop(prepared: Prepared) -> float:
        if len(seen) == 4:
            raise KeyboardInterrupt
        return near_a_tenth(prepared)

    seen = pretend(monkeypatch, stop)
    for n_trials, code in ((2, 0), (5, 130), (5, 0)):
        args = [*common, "output_dir=parts", f"hydra.sweeper.n_trials={n_trials}"]
        assert search(*args) == code
    # This trial was stopped and repeated in the same folder.
    del seen[3]
    assert [lr for _, lr in seen] == whole
    assert [folder.name for folder, _ in seen] == [str(i) for i in range(5)]
    shown = capsys.readouterr().out
    assert "jobs: 2 done, 0 skipped, 0 failed" in shown
    before, after = (read_outcomes(place / folder) for folder in ("whole", "parts"))
    assert [(o.job, o.status, o.objective) for o in before] == [
        (o.job, o.status, o.objective) for o in after
    ]

    assert search(*PRETENDED, "output_dir=other", "seed=1", "hydra.sweeper.n_trials=2") == 0
    assert seen[-1][1] != whole[1]


@pytest.mark.slow
def test_another_search_in_the_folder_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = pretend(monkeypatch, near_a_tenth)
    args = [*PRETENDED, "output_dir=same", "hydra.sweeper.n_trials=1"]
    assert search(*args) == 0
    assert search(*args, "trainer.epochs=5") == 1
    assert "config.trainer.epochs: 3 before, 5 now" in capsys.readouterr().err
    assert search(*args, "adapter.lr=interval(1e-4,1e-2)") == 1
    assert "space.adapter.lr" in capsys.readouterr().err
    monkeypatch.setattr("kinopoisk_ft.provenance.get_processor", lambda: "another")
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
    assert {outcome.job for outcome in read_outcomes(place / "failing")} == {0, 3, 4, 5}


@pytest.mark.slow
def test_a_lost_trial_resumes_in_its_folder(
    monkeypatch: pytest.MonkeyPatch, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second job of the first command is killed, as Slurm and Ray report it."""
    make = Plugins.instantiate_launcher

    def make_losing(self: Plugins, **context: Any) -> Launcher:
        launcher = make(self, **context)
        launch = launcher.launch

        def lose(jobs: list[list[str]], initial_job_idx: int) -> Any:
            if initial_job_idx == 1 and not lost:
                lost.append(jobs[0])
                return record_lost_jobs(place / "lost", ["out of memory"], jobs, 1)
            return launch(jobs, initial_job_idx)

        monkeypatch.setattr(launcher, "launch", lose)
        return launcher

    lost: list[list[str]] = []
    monkeypatch.setattr(Plugins, "instantiate_launcher", make_losing)
    seen = pretend(monkeypatch, near_a_tenth)
    args = [*PRETENDED, "output_dir=lost", "hydra.sweeper.n_trials=3"]
    assert search(*args) == 1
    assert "1 unfinished" in capsys.readouterr().out
    assert search(*args) == 0
    assert [folder.name for folder, _ in seen] == ["0", "2", "1"]
    assert f"adapter.lr={seen[2][1]}" in lost[0]
    assert {one.job: one.status for one in read_outcomes(place / "lost")} == dict.fromkeys(
        range(3), "done"
    )


@pytest.mark.slow
def test_a_search_that_starts_over_keeps_no_checkpoint(
    monkeypatch: pytest.MonkeyPatch, place: Path
) -> None:
    """A trial that Slurm requeues later must resume, so `resume` must not be never."""

    def score(prepared: Prepared) -> float:
        seen.append(prepared.cfg.resume)
        return 0.5

    args = [*PRETENDED, "output_dir=over", "hydra.sweeper.n_trials=1"]
    seen: list[str] = []
    pretend(monkeypatch, score)
    assert search(*args) == 0
    unfinished = [place / "over" / name for name in ("0", "300_labels")]
    for folder in unfinished:
        RunFolder(folder, {}).mark_started("old")
        (folder / "checkpoints" / "checkpoint-1").mkdir(parents=True)
    assert search(*args, "rerun=true") == 0
    assert seen == ["auto", "auto"]
    kept = [[*folder.rglob("*.json"), *folder.glob("checkpoints/*")] for folder in unfinished]
    assert [len(files) for files in kept] == [0, 2]
    # Job folders with names of their own are not found, so there the trials start over themselves.
    assert search(*args, "rerun=true", "hydra.sweep.subdir=${hydra.job.override_dirname}") == 0
    assert seen[2:] == ["never"]


def test_a_search_that_is_refused_deletes_nothing(
    monkeypatch: pytest.MonkeyPatch, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = place / "refused"
    for name in ("0", "1"):
        RunFolder(folder / name, {}).mark_started("old")
        (folder / name / "checkpoints" / "checkpoint-1").mkdir(parents=True)
    open_study(folder, None, "maximize")
    Outcome(0, "done", []).write(folder)
    files, journal = set(folder.rglob("*")), (folder / JOURNAL).read_text()

    def refuse(*_: Any, **options: Any) -> str:
        raise UserError("the store has another schema")

    monkeypatch.setattr(Tracker, "start", refuse)
    monkeypatch.setattr(run_folder, "LOCK_TIMEOUT", 0.0)
    args = [*PRETENDED, "output_dir=refused", "rerun=true"]
    assert search(*args) == 1
    assert "the store has another schema" in capsys.readouterr().err
    # The last folder is locked, so that the others would be changed before it.
    *_, last = folder.glob("*/unfinished.json")
    with RunFolder(last.parent, {}).lock():
        assert search(*args) == 1
    assert "another process is using this output folder" in capsys.readouterr().err
    assert files <= set(folder.rglob("*"))
    assert (folder / JOURNAL).read_text() == journal


@pytest.mark.slow
def test_a_second_search_in_a_folder_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pretend(monkeypatch, near_a_tenth)
    args = [*PRETENDED, "output_dir=twice", "hydra.sweeper.n_trials=1"]
    assert search(*args) == 0
    monkeypatch.setattr(run_folder, "LOCK_TIMEOUT", 0.0)
    files = [place / "twice" / "search.journal", place / "twice" / "jobs" / "0.json"]
    before = [file.read_text() for file in files]
    first = ParentRun()
    first.lock(OmegaConf.create({"hydra": {"sweep": {"dir": str(place / "twice")}}}))
    capsys.readouterr()
    for options in ([], ["rerun=true"]):
        assert search(*args, *options) == 1
        assert "another process is using this output folder" in capsys.readouterr().err
    assert [file.read_text() for file in files] == before
    first.unlock()
    assert search(*args, "trainer.checkpoint_every=7", "trainer.process_timeout=8") == 0


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("seed=null", "is not a whole number of at least 0"),
        ("hydra.sweeper.n_trials=0", "is not a whole number of at least 1"),
        ("trainer.epochs=interval(1,8)", "trainer.epochs=1.0: Input should be a valid integer"),
    ],
)
def test_values_of_a_search_are_checked_before_it_begins(
    argument: str, message: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert search(*PRETENDED, argument, "output_dir=wrong") == 1
    assert message in capsys.readouterr().err
    assert not (place / "wrong" / "search.journal").exists()


def test_a_search_without_optuna_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert search(*PRETENDED, "output_dir=bare") == 1
    assert "pip install -e '.[search]'" in capsys.readouterr().err
