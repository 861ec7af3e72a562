"""Test repeated replays: each event is sent once, and refused events are tried again."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest
from mlflow import MlflowClient
from syncing import _here as _here
from syncing import client as client
from syncing import place as place
from syncing import runs_of
from tracked import offline, read_unchecked, tracker

from kinopoisk_ft.commands import sync
from kinopoisk_ft.tracking.event_log import find_logs


def test_without_its_state_nothing_is_sent_twice(client: MlflowClient, tmp_path: Path) -> None:
    run = offline(experiment="stateless")
    run.start("one", {"a": 1}, {}, folder=tmp_path)
    for step in range(3):
        run.metrics({"loss": float(step)}, step)
    run.finish("FINISHED")
    for text in (None, "{", "[]", '{"run_id": 7}'):
        (log,) = find_logs(tmp_path)
        if text is None:
            log.state_file.unlink(missing_ok=True)
        else:
            log.state_file.write_text(text)
        assert sync.main([str(tmp_path)]) == 0
    (found,) = runs_of(client, "stateless")
    history = client.get_metric_history(found.info.run_id, "loss")
    assert [m.step for m in history] == [0, 1, 2]


def test_a_state_that_names_a_foreign_run_is_ignored(
    client: MlflowClient, place: Path, tmp_path: Path
) -> None:
    other = tracker(f"sqlite:///{place / 'mlflow.db'}", experiment="others")
    victim = other.start("victim", {}, {}, folder=tmp_path / "victim")
    other.finish("FINISHED")
    run = offline(experiment="others")
    run.start("one", {}, {}, folder=tmp_path / "one")
    run.metrics({"loss": 1.0}, 1)
    run.finish("FINISHED")
    (log,) = find_logs(tmp_path / "one")
    state = {"uri": f"sqlite:///{place / 'mlflow.db'}", "run_id": victim, "seq": 1, "refused": {}}
    log.state_file.write_text(json.dumps(state))
    assert sync.main([str(tmp_path / "one")]) == 0
    assert "loss" not in client.get_run(victim).data.metrics
    assert len(runs_of(client, "others")) == 2


def test_an_earlier_run_does_not_get_the_files_of_a_later_run_in_its_folder(
    client: MlflowClient,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    for text in ("first", "second"):
        run = offline(experiment="twice")
        run.start(text, {}, {}, folder=tmp_path)
        (tmp_path / "result.txt").write_text(text)
        run.artifact(tmp_path / "result.txt")
        run.finish("FINISHED")
    assert caplog.text.count("overwrites files of run 'first', which is not sent yet") == 1
    assert sync.main([str(tmp_path)]) == 1
    assert "a later run in this folder has overwritten its files" in capsys.readouterr().out
    files = {one.info.run_name: [f.path for f in client.list_artifacts(one.info.run_id)]
             for one in runs_of(client, "twice")}  # fmt: skip
    assert files == {"first": [], "second": ["result.txt"]}


def test_refused_events_are_tried_again(
    client: MlflowClient, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = offline(experiment="again")
    run.start("one", {}, {}, folder=tmp_path)
    run.artifact(tmp_path / "late.txt")
    run.metrics({"loss": 1.0}, 1)
    run.finish("FINISHED")
    assert sync.main([str(tmp_path)]) == 1
    assert "late.txt does not exist any more" in capsys.readouterr().out
    (tmp_path / "late.txt").write_text("found again")
    assert sync.main([str(tmp_path)]) == 0
    assert "artifacts 1\n" in capsys.readouterr().out
    assert sync.main([str(tmp_path)]) == 0
    assert "runs: 0 sent, 1 already sent" in capsys.readouterr().out
    (found,) = runs_of(client, "again")
    assert [file.path for file in client.list_artifacts(found.info.run_id)] == ["late.txt"]
    assert len(client.get_metric_history(found.info.run_id, "loss")) == 1


def test_an_unreachable_store_of_one_run_does_not_stop_the_others(
    client: MlflowClient, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("first", "second"):
        run = offline(experiment="several")
        run.start(name, {}, {}, folder=tmp_path / name)
        run.finish("FINISHED")
    (log,) = find_logs(tmp_path / "first")
    elsewhere = read_unchecked(log.file).replace(socket.gethostname(), "node7")
    log.file.write_text(elsewhere.replace('"uri": null', '"uri": "http://127.0.0.1:9"'))
    assert sync.main([str(tmp_path)]) == 1
    shown = capsys.readouterr()
    assert "runs: 1 sent, 0 already sent, 0 still running, 1 not sent" in shown.out
    assert "error: first" in shown.err
    assert [run.info.run_name for run in runs_of(client, "several")] == ["second"]
