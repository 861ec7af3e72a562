"""Test sending runs and sweeps recorded offline, also from another folder or machine."""

from __future__ import annotations

import json
import math
import shutil
import sys
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import pytest
import tiny
from mlflow import MlflowClient
from places import SAVED
from syncing import _here as _here
from syncing import client as client
from syncing import place as place
from syncing import runs_of
from tracked import URI, FakeStore, offline, refuse_access, use

from kinopoisk_ft import cli
from kinopoisk_ft.commands import sync
from kinopoisk_ft.reporting.runs import collect
from kinopoisk_ft.tracking.event_log import find_logs
from kinopoisk_ft.tracking.mlflow_names import from_mlflow
from kinopoisk_ft.tracking.offline import find_recorded

DATA = ["data=file", "data.path=reviews.jsonl", "data.text_column=text", "data.label_column=mark"]
BERT = [
    "model=bert_scratch", "model.hidden_size=16", "model.num_layers=2", "model.max_positions=64",
    "model.vocab_size=120", "data.max_length=32", "trainer.precision=fp32", "trainer.device=cpu",
    "trainer.max_steps=4", "trainer.log_every=1",
]  # fmt: skip
# No program listens on port 9 (discard).
REFUSED = "tracking.uri=http://127.0.0.1:9"


def run(*args: str) -> int:
    before = sys.argv
    try:
        return cli.main([*DATA, *args])
    except SystemExit as stop:
        return int(stop.code or 0)
    finally:
        sys.argv = before


def recorded_events(folder: Path) -> list[dict[str, Any]]:
    (log,) = find_logs(folder)
    return list(log.events)


@pytest.mark.slow
def test_a_run_without_a_server_trains_the_same_and_is_sent_from_elsewhere(
    place: Path, client: MlflowClient, capsys: pytest.CaptureFixture[str]
) -> None:
    same = [*BERT, "adapter=none", "tracking.experiment=moved"]
    assert run(*same, "tracking=none", "output_dir=untracked") == 0
    assert run(*same, "output_dir=first", REFUSED) == 0
    weights = [(place / f / "model" / "encoder" / "model.safetensors").read_bytes()
               for f in ("untracked", "first")]  # fmt: skip
    assert weights[0] == weights[1]
    assert not (place / "first" / "unfinished.json").exists()
    events = recorded_events(place / "first")
    capsys.readouterr()

    (place / "archive").mkdir()
    shutil.move(place / "first", place / "archive" / "node7")
    for sent in (1, 0):
        assert sync.main(["archive", "--uri", f"sqlite:///{place / 'mlflow.db'}"]) == 0
        assert f"runs: {sent} sent, {1 - sent} already sent" in capsys.readouterr().out
    (found,) = runs_of(client, "moved")
    info, ended = found.info, events[-1]
    assert (info.status, info.run_name) == ("FINISHED", "bert_scratch, seed 42")
    assert (info.start_time, info.end_time) == (events[0]["time"], ended["time"])
    metrics = [
        (key, event["step"], event["time"], value)
        for event in events if event["verb"] == "metrics"
        for key, value in event["values"].items()
    ]  # fmt: skip
    kept = [(from_mlflow(m.key), m.step, m.timestamp, m.value) for key in found.data.metrics
            for m in client.get_metric_history(info.run_id, key)]  # fmt: skip
    assert sorted(kept) == sorted(metrics)
    assert sum(key == "train_loss" for key, *_ in kept) == 4
    assert found.data.params["trainer.max_steps"] == "4"
    paths = {file.path for file in client.list_artifacts(info.run_id)}
    asked = {Path(e["path"]).name for e in events if e["verb"] == "artifact"}
    assert {path.removeprefix("run:") for path in asked} == paths
    assert "config.yaml" in paths
    result = json.loads(Path(client.download_artifacts(info.run_id, "result.json")).read_text())
    tagged = json.loads(found.data.tags["kinopoisk_ft.result"])
    assert result["run_id"] == tagged["run_id"] == info.run_id
    mlflow.set_tracking_uri(f"sqlite:///{place / 'mlflow.db'}")
    (model,) = found.outputs.model_outputs
    texts = pd.DataFrame({"text": [tiny.GOOD]})
    served = mlflow.pyfunc.load_model(f"models:/{model.model_id}").predict(texts)
    assert list(served.columns) == ["label", "p_0", "p_1"]
    collected = collect(client, "moved")
    assert [trained.run_id for trained in collected.runs] == [info.run_id]


@pytest.mark.slow
def test_an_offline_sweep_skips_and_is_sent_with_its_parent(
    place: Path, client: MlflowClient, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["-m", "model=tfidf", "tracking=offline", "tracking.experiment=swept",
            "tracking.log_model=false", "output_dir=swept"]  # fmt: skip
    assert run(*args, "seed=0") == 0
    assert run(*args, "seed=0,1") == 0
    assert "jobs: 1 done, 1 skipped, 0 failed" in capsys.readouterr().out
    for sent in (5, 0):
        assert sync.main(["swept"]) == 0
        assert f"runs: {sent} sent, {5 - sent} already sent" in capsys.readouterr().out
    found = runs_of(client, "swept")
    kinds = [one.data.tags["kinopoisk_ft.kind"] for one in found]
    assert kinds == ["sweep", "train", "sweep", "skipped", "train"]
    parents = [one.data.tags.get("mlflow.parentRunId") for one in found]
    first, second = (found[i].info.run_id for i in (0, 2))
    assert parents == [None, first, None, second, second]
    assert found[3].data.tags["kinopoisk_ft.same_as"] == found[1].info.run_id
    assert {one.seed for one in collect(client, "swept", second).runs} == {"0", "1"}
    # The store now has the finished runs, and the folder still has them.
    for args[2] in ("tracking=mlflow", "tracking=offline"):
        assert run(*args, "seed=0,1") == 0
        assert "jobs: 0 done, 2 skipped, 0 failed" in capsys.readouterr().out


@pytest.mark.slow
def test_a_sweep_continues_without_a_server(
    place: Path, client: MlflowClient, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["model=tfidf", REFUSED, "tracking.experiment=down", "tracking.log_model=false"]
    assert run("-m", *args, "seed=0", "output_dir=down") == 0
    shown = capsys.readouterr().out
    assert "jobs: 1 done, 0 skipped, 0 failed" in shown
    assert (
        f"kinopoisk-ft sync {place / 'down' / '0'}"
        in shown + (place / "down" / "0" / "run.log").read_text()
    )
    uri = f"sqlite:///{place / 'mlflow.db'}"
    assert sync.main(["down/0", "--uri", uri]) == 1
    assert "with the folder of the whole sweep" in capsys.readouterr().err
    assert sync.main(["down", "--uri", uri]) == 0
    parent, child = runs_of(client, "down")
    assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert (parent.info.status, child.info.status) == ("FINISHED", "FINISHED")


def assert_left_out(folder: Path, store: FakeStore, capsys: pytest.CaptureFixture[str]) -> None:
    before = recorded_events(folder)
    assert sync.main([str(folder), "--uri", URI]) == 1
    assert "may still be running, because its folder cannot be locked" in capsys.readouterr().err
    assert (recorded_events(folder), store.runs) == (before, {})


@pytest.mark.usefixtures("no_locks")
def test_without_locks_only_a_finished_run_is_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`sync` must not end a run in progress, whose next events would then have used numbers."""
    store = FakeStore()
    use(monkeypatch, store)
    running = offline()
    running.start("one", {}, {}, folder=tmp_path)
    assert_left_out(tmp_path, store, capsys)
    running.metrics({"loss": 1.0}, 1)
    running.finish("FINISHED")
    assert sync.main([str(tmp_path), "--uri", URI]) == 0
    assert store.values() == [("loss", 1, 1.0)]


def test_a_run_in_progress_of_another_user_is_not_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store = FakeStore()
    use(monkeypatch, store)
    running = offline()
    running.start("one", {}, {}, folder=tmp_path)
    monkeypatch.setattr("filelock.FileLock.acquire", refuse_access)
    assert_left_out(tmp_path, store, capsys)


def test_a_run_whose_process_died_is_sent_and_can_be_resumed(
    client: MlflowClient, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    died = offline(experiment="died")
    run_id = died.start("one", {}, {}, folder=tmp_path)
    died.metrics({"loss": 1.0}, 1)
    assert sync.main([str(tmp_path)]) == 0
    assert "skipped, it is still running or being sent" in capsys.readouterr().out
    # The end of a process closes the log, too.
    died._log.close()
    assert sync.main([str(tmp_path), "--died-as", "FAILED"]) == 0
    assert "FAILED; its process died" in capsys.readouterr().out
    (found,) = runs_of(client, "died")
    last = recorded_events(tmp_path)[-2]
    assert (found.info.status, found.info.end_time) == ("FAILED", last["time"])

    again = offline(experiment="died")
    assert again.start("one", {}, {}, resume=run_id, folder=tmp_path) == run_id
    for step in (1, 2):
        again.metrics({"loss": float(step)}, step)
    again.finish("FINISHED")
    assert sync.main([str(tmp_path)]) == 0
    (found,) = runs_of(client, "died")
    assert found.info.status == "FINISHED"
    history = client.get_metric_history(found.info.run_id, "loss")
    assert [(m.step, m.value) for m in history] == [(1, 1.0), (2, 2.0)]


def test_a_run_that_was_sent_is_still_found_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, FakeStore())
    run = offline()
    run.start("one", {}, {"a": "b"}, folder=tmp_path / "0")
    run.finish("FINISHED")
    for tags, expected in (({"a": "b"}, "b"), ({"a": "c"}, None)):
        found = [(find(tags, tmp_path) or {}).get("a") for find in (offline().find, _find_unsent)]
        assert found == [expected] * 2
    assert sync.main([str(tmp_path), "--uri", URI]) == 0
    assert (offline().find({"a": "b"}, tmp_path) or {})["a"] == "b"
    # The store has the run, unless the user has deleted it there.
    assert _find_unsent({"a": "b"}, tmp_path) is None


def _find_unsent(tags: dict[str, str], folder: Path) -> dict[str, str] | None:
    return find_recorded(folder, tags, only_unsent=True)


@pytest.mark.parametrize("had_parent", [True, False])
def test_a_run_becomes_a_child_of_the_sweep_that_resumes_it(
    client: MlflowClient, tmp_path: Path, had_parent: bool
) -> None:
    name = f"adopted{had_parent}"
    first, second, job = (offline(experiment=name) for _ in range(3))
    old = first.start("sweep", {}, {}, folder=tmp_path)
    first.finish("KILLED")
    kept = job.start("job", {}, {}, old if had_parent else None, folder=tmp_path / "0")
    # The end of a process closes the log, too.
    job._log.close()
    new = second.start("sweep", {}, {}, folder=tmp_path)
    second.finish("FINISHED")
    assert job.start("job", {}, {}, new, kept, folder=tmp_path / "0") == kept
    job.finish("FINISHED")
    assert sync.main([str(tmp_path)]) == 0
    ids = {one.data.tags["kinopoisk_ft.events"]: one for one in runs_of(client, name)}
    parent = ids[kept.removeprefix("offline-")].data.tags["mlflow.parentRunId"]
    assert parent == ids[new.removeprefix("offline-")].info.run_id


def test_logs_of_earlier_versions_are_sent(
    client: MlflowClient, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Send a sweep whose first job was resumed and lost a file; its second job was killed."""
    folder = Path(shutil.copytree(SAVED / "offline_sweep_1", tmp_path / "sweep"))
    state = folder / "0" / "tracking" / f"{'5b' * 12}.sent.json"
    sent_elsewhere = json.loads(state.read_text())
    assert sync.main([str(folder)]) == 1
    assert "runs: 3 sent, 0 already sent" in (shown := capsys.readouterr().out)
    assert "  not sent: artifact run:lost.txt" in shown
    parent, job, killed = runs_of(client, "recorded")
    assert [run.info.status for run in (parent, job, killed)] == ["FAILED", "FINISHED", "KILLED"]
    assert parent.data.tags["overrides"] == "seed=0,1"
    for run in (job, killed):
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        # The version that wrote the log put values of more than 500 characters into a file.
        assert len(run.data.params["trainer.stages"]) > 500
    assert (job.data.params["added"], job.data.params["note"]) == ("1", "отзыв")
    assert "error" not in job.data.tags
    assert (job.info.start_time, job.info.end_time) == (1700000000250, 1700000003750)
    history = client.get_metric_history(job.info.run_id, "train/loss")
    assert [(m.step, m.timestamp, m.value) for m in history] == [
        (1, 1700000000750, 1.0), (2, 1700000001000, 0.5), (3, 1700000002250, 1 / 3)
    ]  # fmt: skip
    assert math.isnan(job.data.metrics["val/loss"])
    result = Path(client.download_artifacts(job.info.run_id, "result.json"))
    assert json.loads(result.read_text())["run_id"] == job.info.run_id

    # In the state file of an earlier version, everything has been sent except the lost file.
    here = {"uri": f"sqlite:///{Path.cwd() / 'mlflow.db'}", "run_id": job.info.run_id}
    state.write_text(json.dumps(sent_elsewhere | here))
    (folder / "0" / "lost.txt").write_text("found again")
    assert sync.main([str(folder)]) == 0
    assert "artifacts 1\n" in (shown := capsys.readouterr().out)
    assert "metrics" not in shown
    assert "runs: 1 sent, 2 already sent" in shown
