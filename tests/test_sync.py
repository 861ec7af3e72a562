"""`python -m kinopoisk_ft.sync`: runs made offline are imported whole, from anywhere, once."""

from __future__ import annotations

import json
import shutil
import socket
import sys
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import pytest
import tiny
from mlflow import MlflowClient
from tracked import hurry, offline, tracker

from kinopoisk_ft import cli, sync
from kinopoisk_ft.reporting.collect import collect
from kinopoisk_ft.tracking import sending
from kinopoisk_ft.tracking.events import event_logs
from kinopoisk_ft.tracking.offline import find_unsent
from kinopoisk_ft.tracking.sent import sent_file

DATA = ["data=file", "data.path=reviews.jsonl", "data.text_column=text", "data.label_column=mark"]
BERT = [
    "model=bert_scratch", "model.hidden_size=16", "model.num_layers=2", "model.max_positions=64",
    "model.vocab_size=120", "data.max_length=32", "trainer.precision=fp32", "trainer.device=cpu",
    "trainer.max_steps=4", "trainer.log_every=1",
]  # fmt: skip
REFUSED = "tracking.uri=http://127.0.0.1:9"  # nothing listens at the port named discard


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with reviews and one store: its tables take seconds to make."""
    folder = tmp_path_factory.mktemp("sync")
    texts, labels = tiny.reviews(80)
    table = pd.DataFrame({"text": [f"{t} {i}" for i, t in enumerate(texts)], "mark": labels})
    table.to_json(folder / "reviews.jsonl", orient="records", lines=True, force_ascii=False)
    return folder


@pytest.fixture(autouse=True)
def _here(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setenv("KINOPOISK_FT_CACHE", str(place / "cache"))
    hurry(monkeypatch)
    monkeypatch.setattr(sending, "PAUSES", (0.0,))
    # MLflow and the command line set these in a process: set first, they are put back.
    for name in ("MLFLOW_TRACKING_URI", "HYDRA_FULL_ERROR", "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


@pytest.fixture
def client(place: Path) -> MlflowClient:
    return MlflowClient(f"sqlite:///{place / 'mlflow.db'}")


def run(*args: str) -> int:
    before = sys.argv
    try:
        return cli.main([*DATA, *args])
    except SystemExit as stop:
        return int(stop.code or 0)
    finally:
        sys.argv = before


def runs_of(client: MlflowClient, experiment: str) -> list[Any]:
    found = client.get_experiment_by_name(experiment)
    return list(client.search_runs([found.experiment_id], order_by=["attributes.start_time"]))


def told_events(folder: Path) -> list[dict[str, Any]]:
    (log,) = event_logs(folder)
    return list(log.all())


def test_a_run_without_a_server_trains_the_same_and_is_imported_from_elsewhere(
    place: Path, client: MlflowClient, capsys: pytest.CaptureFixture[str]
) -> None:
    same = [*BERT, "adapter=none", "tracking.experiment=moved"]
    assert run(*same, "tracking=none", "output_dir=untracked") == 0
    assert run(*same, "output_dir=first", REFUSED) == 0
    weights = [(place / f / "model" / "model.safetensors").read_bytes()
               for f in ("untracked", "first")]  # fmt: skip
    assert weights[0] == weights[1]
    assert not (place / "first" / "unfinished.json").exists()
    events = told_events(place / "first")
    capsys.readouterr()

    (place / "archive").mkdir()
    shutil.move(place / "first", place / "archive" / "node7")
    for sent in (1, 0):
        assert sync.main(["archive", "--uri", f"sqlite:///{place / 'mlflow.db'}"]) == 0
        assert f"runs: {sent} sent, {1 - sent} was sent" in capsys.readouterr().out
    (found,) = runs_of(client, "moved")
    info, ended = found.info, events[-1]
    assert (info.status, info.run_name) == ("FINISHED", "bert_scratch, seed 42")
    assert (info.start_time, info.end_time) == (events[0]["time"], ended["time"])
    metrics = [
        (key, event["step"], event["time"], value)
        for event in events if event["verb"] == "metrics"
        for key, value in event["values"].items()
    ]  # fmt: skip
    kept = [(m.key, m.step, m.timestamp, m.value) for key in found.data.metrics
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
def test_an_offline_sweep_skips_and_is_imported_with_its_parent(
    place: Path, client: MlflowClient, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["-m", "model=tfidf", "tracking=offline", "tracking.experiment=swept",
            "tracking.log_model=false", "output_dir=swept"]  # fmt: skip
    assert run(*args, "seed=0") == 0
    assert run(*args, "seed=0,1") == 0
    assert "jobs: 1 done, 1 skipped, 0 failed" in capsys.readouterr().out
    for sent in (5, 0):
        assert sync.main(["swept"]) == 0
        assert f"runs: {sent} sent, {5 - sent} was sent" in capsys.readouterr().out
    found = runs_of(client, "swept")
    kinds = [one.data.tags["kinopoisk_ft.kind"] for one in found]
    assert kinds == ["sweep", "train", "sweep", "skipped", "train"]
    parents = [one.data.tags.get("mlflow.parentRunId") for one in found]
    first, second = (found[i].info.run_id for i in (0, 2))
    assert parents == [None, first, None, second, second]
    assert found[3].data.tags["kinopoisk_ft.same_as"] == found[1].info.run_id
    assert {one.seed for one in collect(client, "swept", second).runs} == {"0", "1"}
    # The store now knows what is finished.
    args[2] = "tracking=mlflow"
    assert run(*args, "seed=0,1") == 0
    assert "jobs: 0 done, 2 skipped, 0 failed" in capsys.readouterr().out


def test_a_sweep_goes_on_without_a_server(
    place: Path, client: MlflowClient, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["model=tfidf", REFUSED, "tracking.experiment=down", "tracking.log_model=false"]
    assert run("-m", *args, "seed=0", "output_dir=down") == 0
    shown = capsys.readouterr().out
    assert "jobs: 1 done, 0 skipped, 0 failed" in shown
    assert (
        f"python -m kinopoisk_ft.sync {place / 'down' / '0'}"
        in shown + (place / "down" / "0" / "run.log").read_text()
    )
    uri = f"sqlite:///{place / 'mlflow.db'}"
    assert sync.main(["down/0", "--uri", uri]) == 1
    assert "send the sweep's whole folder" in capsys.readouterr().err
    assert sync.main(["down", "--uri", uri]) == 0
    parent, child = runs_of(client, "down")
    assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert (parent.info.status, child.info.status) == ("FINISHED", "FINISHED")


def test_a_run_whose_process_died_is_imported_and_can_go_on(
    client: MlflowClient, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    died = offline(experiment="died")
    run_id = died.start("one", {}, {}, folder=tmp_path)
    died.metrics({"loss": 1.0}, 1)
    assert sync.main([str(tmp_path)]) == 0
    assert "goes on, or is being sent: left alone" in capsys.readouterr().out
    died._events.close()  # as the end of a process does
    assert sync.main([str(tmp_path), "--died-as", "FAILED"]) == 0
    assert "FAILED; its process died" in capsys.readouterr().out
    (found,) = runs_of(client, "died")
    last = told_events(tmp_path)[-2]
    assert (found.info.status, found.info.end_time) == ("FAILED", last["time"])

    again = offline(experiment="died")
    assert again.start("one", {}, {}, kept=run_id, folder=tmp_path) == run_id
    for step in (1, 2):
        again.metrics({"loss": float(step)}, step)
    again.finish("FINISHED")
    assert sync.main([str(tmp_path)]) == 0
    (found,) = runs_of(client, "died")
    assert found.info.status == "FINISHED"
    history = client.get_metric_history(found.info.run_id, "loss")
    assert [(m.step, m.value) for m in history] == [(1, 1.0), (2, 2.0)]


@pytest.mark.parametrize("had_parent", [True, False])
def test_a_run_that_goes_on_in_another_sweep_is_its_child(
    client: MlflowClient, tmp_path: Path, had_parent: bool
) -> None:
    name = f"adopted{had_parent}"
    first, second, job = (offline(experiment=name) for _ in range(3))
    old = first.start("sweep", {}, {}, folder=tmp_path)
    first.finish("KILLED")
    kept = job.start("job", {}, {}, old if had_parent else None, folder=tmp_path / "0")
    job._events.close()  # as the end of a process does
    new = second.start("sweep", {}, {}, folder=tmp_path)
    second.finish("FINISHED")
    assert job.start("job", {}, {}, new, kept, folder=tmp_path / "0") == kept
    job.finish("FINISHED")
    assert sync.main([str(tmp_path)]) == 0
    ids = {one.data.tags["kinopoisk_ft.events"]: one for one in runs_of(client, name)}
    parent = ids[kept.removeprefix("offline-")].data.tags["mlflow.parentRunId"]
    assert parent == ids[new.removeprefix("offline-")].info.run_id


def test_without_its_state_nothing_is_sent_twice(client: MlflowClient, tmp_path: Path) -> None:
    told = offline(experiment="stateless")
    told.start("one", {"a": 1}, {}, folder=tmp_path)
    for step in range(3):
        told.metrics({"loss": float(step)}, step)
    told.finish("FINISHED")
    for text in (None, "{", "[]", '{"run_id": 7}'):
        (log,) = event_logs(tmp_path)
        if text is None:
            sent_file(log).unlink(missing_ok=True)
        else:
            sent_file(log).write_text(text)
        assert sync.main([str(tmp_path)]) == 0
    (found,) = runs_of(client, "stateless")
    history = client.get_metric_history(found.info.run_id, "loss")
    assert [m.step for m in history] == [0, 1, 2]


def test_state_that_names_a_run_of_others_is_not_believed(
    client: MlflowClient, place: Path, tmp_path: Path
) -> None:
    other = tracker(f"sqlite:///{place / 'mlflow.db'}", experiment="others")
    victim = other.start("victim", {}, {}, folder=tmp_path / "victim")
    other.finish("FINISHED")
    told = offline(experiment="others")
    told.start("one", {}, {}, folder=tmp_path / "one")
    told.metrics({"loss": 1.0}, 1)
    told.finish("FINISHED")
    (log,) = event_logs(tmp_path / "one")
    state = {"uri": f"sqlite:///{place / 'mlflow.db'}", "run_id": victim, "seq": 1, "refused": {}}
    sent_file(log).write_text(json.dumps(state))
    assert sync.main([str(tmp_path / "one")]) == 0
    assert "loss" not in client.get_run(victim).data.metrics
    assert len(runs_of(client, "others")) == 2


def test_an_earlier_run_of_the_same_folder_does_not_get_the_files_of_the_later(
    client: MlflowClient,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    for text in ("first", "second"):
        told = offline(experiment="twice")
        told.start(text, {}, {}, folder=tmp_path)
        (tmp_path / "result.txt").write_text(text)
        told.artifact(tmp_path / "result.txt")
        told.finish("FINISHED")
    assert caplog.text.count("replaces files of a run that is not sent yet: first") == 1
    assert sync.main([str(tmp_path)]) == 1
    assert "a later run in this folder has replaced its files" in capsys.readouterr().out
    files = {one.info.run_name: [f.path for f in client.list_artifacts(one.info.run_id)]
             for one in runs_of(client, "twice")}  # fmt: skip
    assert files == {"first": [], "second": ["result.txt"]}


def test_what_could_not_be_sent_is_tried_again(
    client: MlflowClient, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = offline(experiment="again")
    told.start("one", {}, {}, folder=tmp_path)
    told.artifact(tmp_path / "late.txt")
    told.metrics({"loss": 1.0}, 1)
    told.finish("FINISHED")
    assert sync.main([str(tmp_path)]) == 1
    assert "late.txt is gone" in capsys.readouterr().out
    (tmp_path / "late.txt").write_text("found again")
    assert sync.main([str(tmp_path)]) == 0
    assert "artifacts 1\n" in capsys.readouterr().out
    assert sync.main([str(tmp_path)]) == 0
    assert "runs: 0 sent, 1 was sent" in capsys.readouterr().out
    (found,) = runs_of(client, "again")
    assert [file.path for file in client.list_artifacts(found.info.run_id)] == ["late.txt"]
    assert len(client.get_metric_history(found.info.run_id, "loss")) == 1


def test_a_run_whose_store_is_out_of_reach_holds_up_no_other(
    client: MlflowClient, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("first", "second"):
        told = offline(experiment="several")
        told.start(name, {}, {}, folder=tmp_path / name)
        told.finish("FINISHED")
    (log,) = event_logs(tmp_path / "first")
    elsewhere = log.file.read_text().replace(socket.gethostname(), "node7")
    log.file.write_text(elsewhere.replace('"uri": null', '"uri": "http://127.0.0.1:9"'))
    assert sync.main([str(tmp_path)]) == 1
    shown = capsys.readouterr()
    assert "runs: 1 sent, 0 was sent, 0 goes on, 1 not sent" in shown.out
    assert "error: first" in shown.err
    assert [run.info.run_name for run in runs_of(client, "several")] == ["second"]


def test_what_others_wrote_cannot_lead_out_of_the_folder(
    client: MlflowClient, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "secret.txt").write_text("secret")
    told = offline(experiment="traversal")
    told.start("one", {}, {}, folder=tmp_path / "run")
    told._events.append("artifact", path="run:../secret.txt")
    told._events.append("model", path="run:../..", code="run:code.py", class_names=[])
    told._events.append("__class__")
    told.metrics({"loss": 1.0}, 1)
    told.finish("FINISHED")
    assert sync.main([str(tmp_path / "run")]) == 1
    shown = capsys.readouterr().out
    assert shown.count("leads out of the run's folder") == 2
    (found,) = runs_of(client, "traversal")
    assert not client.list_artifacts(found.info.run_id)
    assert (found.data.metrics, found.info.status) == ({"loss": 1.0}, "FINISHED")


HOSTILE_LINES = {
    "[" * 100_000: "it is no JSON that can be read",
    '{"seq": 7}': "it has no 'time'",
    '{"seq": 7, "time": 1, "verb": "metrics", "values": {"a": 1}}': "it has no 'step'",
    '{"seq": 7, "time": 1, "verb": "metrics", "step": 1}': "it has no 'values'",
    '{"seq": 7, "time": 1, "verb": "metrics", "step": [], "values": {}}': "its 'step' is of the",
    '{"seq": 7, "time": 1, "verb": "metrics", "step": 1, "values": {"a": "x"}}': "its 'values' is",
    '{"seq": 7, "time": 1, "verb": "tags", "values": {"a": {}}}': "its 'values' is of the wrong",
    '{"seq": 7, "time": 1, "verb": "params"}': "it has no 'values'",
    '{"seq": 7, "time": 1, "verb": "artifact", "path": 5}': "its 'path' is of the wrong kind",
    '{"seq": 7, "time": 1, "verb": "finish"}': "it has no 'status'",
    '{"seq": 7, "time": 1, "verb": ["start"]}': "its 'verb' is of the wrong kind",
    '{"seq": 7, "time": 1, "verb": "later", "tags": 5}': "its 'tags' is of the wrong kind",
    '{"seq": 7, "time": 1180591620717411303424, "verb": "reopen"}': "its 'time' is of",
    '{"seq": 7, "time": 1, "verb": "finish", "status": "\\ud800"}': "it is no text",
}


def test_lines_that_say_too_little_are_told_and_the_rest_is_sent(
    client: MlflowClient, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    told = offline(experiment="hostile")
    run_id = told.start("one", {}, {"a": "b"}, folder=tmp_path)
    told._events.close()
    (log,) = event_logs(tmp_path)
    with log.file.open("a") as stream:
        stream.writelines(f"{line}\n" for line in HOSTILE_LINES)
    sent_file(log).write_text("[" * 100_000)
    again = offline(experiment="hostile")
    assert again.start("one", {}, {}, kept=run_id, folder=tmp_path) == run_id
    again.metrics({"loss": 1.0}, 1)
    again.finish("FINISHED")
    assert find_unsent(tmp_path, {"a": "b"}) == {"a": "b"}
    assert sync.main([str(tmp_path)]) == 0
    for number, wrong in enumerate(HOSTILE_LINES.values(), start=2):
        assert f"a damaged line is left out: {log.file}, line {number}: {wrong}" in caplog.text
    (found,) = runs_of(client, "hostile")
    assert (found.data.metrics, found.info.status) == ({"loss": 1.0}, "FINISHED")


def test_a_log_without_its_beginning_is_not_gone_on_with(tmp_path: Path) -> None:
    told = offline()
    run_id = told.start("one", {}, {}, folder=tmp_path)
    told.finish("KILLED")
    (log,) = event_logs(tmp_path)
    log.file.write_text("[" * 100_000 + "\n" + log.file.read_text().partition("\n")[2])
    again = offline()
    assert again.start("one", {}, {}, kept=run_id, folder=tmp_path) != run_id
    again.finish("FINISHED")
    assert len(event_logs(tmp_path)) == 1


def test_mistakes_end_with_one_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sync.main([str(tmp_path)]) == 1
    assert "there is no recorded run" in capsys.readouterr().err
    (tmp_path / "tracking").mkdir()
    (tmp_path / "tracking" / "a.jsonl").write_text('{"seq": 1, "time": 1, "verb": "start"}\n[]\n')
    assert sync.main([str(tmp_path)]) == 1
    told = offline()
    told.start("one", {}, {}, folder=tmp_path / "run")
    told.finish("FINISHED")
    capsys.readouterr()
    for uri in ("http://127.0.0.1:9", "sqlite:////proc/no/mlflow.db"):
        assert sync.main([str(tmp_path), "--uri", uri]) == 1
        assert "the MLflow store cannot be opened" in capsys.readouterr().err
    (log,) = event_logs(tmp_path / "run")
    told_elsewhere = log.file.read_text().replace(socket.gethostname(), "node7")
    log.file.write_text(told_elsewhere.replace('"uri": null', '"uri": "http://127.0.0.1:9"'))
    assert sync.main([str(tmp_path)]) == 1
    assert "is of another machine and was to go to http://127.0.0.1:9" in capsys.readouterr().err
    database = "postgresql+psycopg://user:secret@db/runs"
    log.file.write_text(told_elsewhere.replace('"uri": null', f'"uri": "{database}"'))
    assert sync.main([str(tmp_path)]) == 1
    told_of = capsys.readouterr().err
    assert "is of another machine and was to go to postgresql+psycopg://" in told_of
    assert "secret" not in told_of
    with pytest.raises(SystemExit, match="2"):
        sync.main([])
    assert "required: folder" in capsys.readouterr().err
