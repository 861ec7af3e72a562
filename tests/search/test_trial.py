"""Test trials with invented scores: an interrupted search resumes, and failures are reported."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from searching import search
from sweeping import _here as _here
from sweeping import place as place

from kinopoisk_ft.config.prepared import Prepared
from kinopoisk_ft.errors import UserError
from kinopoisk_ft.search.trial import watch_trial
from kinopoisk_ft.sweeps.jobs import read_outcomes
from kinopoisk_ft.tasks.result import Result
from kinopoisk_ft.tracking.base import Tracker

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
