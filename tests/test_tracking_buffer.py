"""No store and no disk stops or slows a run; what it tells arrives once, in order."""

from __future__ import annotations

import errno
import logging
import os
import random
import sqlite3
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from tracked import Repeating, Server, hurry, offline, tracker, use, wait_for

from kinopoisk_ft import sync
from kinopoisk_ft.errors import UserError
from kinopoisk_ft.tracking import events as events_module
from kinopoisk_ft.tracking import mlflow as mlflow_module
from kinopoisk_ft.tracking.delivery import Delivery, Target
from kinopoisk_ft.tracking.events import EventLog, event_logs
from kinopoisk_ft.tracking.offline import OfflineTracker
from kinopoisk_ft.tracking.places import located, portable

URI = "sqlite:////nowhere/mlflow.db"


class Killed(BaseException):
    """What no courier catches."""


def tell(run: OfflineTracker, folder: Path, steps: int = 30) -> str:
    """Tell of a whole run but its end; returns its id."""
    run_id = run.start("one", {"a": 1, "long": "z" * 600}, {"k": "v"}, folder=folder)
    (folder / "config.yaml").write_text("a: 1")
    run.artifact(folder / "config.yaml")
    for step in range(steps):
        run.metrics({"loss": 1 / (step + 1), "lr": 0.1}, step)
    run.tags({"result": "good"})
    return run_id


def told(steps: int = 30) -> list[tuple[str, int, float]]:
    return [(k, s, v) for s in range(steps) for k, v in (("loss", 1 / (s + 1)), ("lr", 0.1))]


def logged(client: MlflowClient, run_id: str, key: str) -> list[tuple[int, float]]:
    return [(m.step, m.value) for m in client.get_metric_history(run_id, key)]


def test_events_are_numbered_and_a_torn_line_is_cut(tmp_path: Path) -> None:
    log = EventLog.new(tmp_path)
    log.open()
    for number in range(3):
        log.append("metrics", values={"x": float("nan")}, step=number)
    log.close()
    with log.file.open("a") as stream:
        stream.write('{"seq": 4, "ti')
    again = EventLog(log.file)
    again.open()
    again.append("finish", status="FINISHED")
    assert [(e["seq"], e["verb"]) for e in again.all()] == [
        (1, "metrics"), (2, "metrics"), (3, "metrics"), (4, "finish")
    ]  # fmt: skip
    again.close()


def test_a_damaged_line_is_told_and_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log = EventLog.new(tmp_path)
    log.open()
    for number in range(3):
        log.append("metrics", values={"x": 1.0}, step=number)
    log.close()
    lines = log.file.read_text().splitlines()
    log.file.write_text("\n".join([lines[0], lines[1][:-9], lines[2]]) + "\n")
    assert [event["seq"] for event in log.all()] == [1, 3]
    assert "a damaged line is left out" in caplog.text


def test_one_process_writes(tmp_path: Path) -> None:
    log = EventLog.new(tmp_path)
    log.open()
    with pytest.raises(UserError, match="another process"):
        EventLog(log.file).open()
    log.close()
    EventLog(log.file).open()


def test_a_full_disk_keeps_events_in_memory_and_then_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    log = EventLog.new(tmp_path)
    log.open()
    log.append("metrics", values={"x": 0.0}, step=0)
    write, full = os.write, True

    def half(descriptor: int, data: bytes) -> int:
        if full:
            write(descriptor, data[:5])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(descriptor, data)

    monkeypatch.setattr(os, "write", half)
    monkeypatch.setattr(events_module, "MOST_WAITING", 4)
    for step in range(1, 9):
        log.append("metrics", values={"x": 0.0}, step=step)
    log.append("tags", values={"a": "b"})
    assert (log.waiting(0), log.waiting(3), log.dropped) == (5, 3, 4)
    assert [event["seq"] for event in log.all()] == [1]
    assert log.after(0)[0]["seq"] == 1
    assert [event["seq"] for event in log.after(1)] == [2, 3, 4, 5, 10]
    full = False
    log.append("finish", status="FINISHED")
    log.close()
    assert [event["seq"] for event in log.all()] == [1, 2, 3, 4, 5, 10, 11]
    assert caplog.text.count("cannot be kept on disk") == 1


def test_losses_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: str) -> None:
        raise OSError("gone")

    use(monkeypatch, Repeating(fail))
    run = tracker(URI)
    run.start("one", {}, {}, folder=tmp_path)
    monkeypatch.setattr(os, "write", fail)
    run.metrics({"x": 1.0}, 1)
    run.finish("FINISHED")
    assert "lost: 2 events" in caplog.text
    assert "1 of this run's events are not in the MLflow store yet" in caplog.text
    assert f"python -m kinopoisk_ft.sync {tmp_path}" in caplog.text


def test_with_a_full_disk_a_store_still_gets_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    store = Repeating()
    use(monkeypatch, store)
    run = tracker(URI)
    run.start("one", {}, {}, folder=tmp_path)
    monkeypatch.setattr(os, "write", fail)
    monkeypatch.setattr(os, "replace", fail)
    for step in range(50):
        run.metrics({"x": float(step)}, step)
    run.finish("FINISHED")
    assert store.values() == [("x", step, float(step)) for step in range(50)]
    assert "lost" not in caplog.text


def test_a_store_that_hangs_holds_up_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The store answers only when the whole run has been told."""
    answer = threading.Event()

    def hang(*_: str) -> None:
        answer.wait(60)

    store = Repeating(hang)
    use(monkeypatch, store)
    monkeypatch.setattr(mlflow_module, "START_LOCAL", 0.05)
    monkeypatch.setattr(mlflow_module, "END", {"FINISHED": 60.0, "KILLED": 0.05})
    run = tracker(URI)
    run_id = tell(run, tmp_path)
    assert run_id.startswith("offline-")
    assert "without the MLflow store: no answer in" in caplog.text
    run.flush()
    assert not store.runs
    run.finish("KILLED")
    assert "events are not in the MLflow store yet" in caplog.text
    answer.set()
    run._courier._thread.join()  # type: ignore[union-attr]

    again = tracker(URI)
    kept = again.start("one", {"a": 1}, {}, kept=run_id, folder=tmp_path)
    assert kept in store.runs
    again.finish("FINISHED")
    assert store.values() == told()
    (ended,) = (run.ended for run in store.runs.values())
    assert ended == ["KILLED", "RUNNING", "FINISHED"]


@pytest.mark.parametrize("seed", range(6))
def test_failures_of_every_kind_repeat_nothing(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request fails before or after it was carried out; the store keeps what is repeated."""
    drawn, calm = random.Random(seed), threading.Event()

    def trouble(when: str, name: str) -> None:
        lost = name in ("create_run", "log_batch", "set_terminated") and when == "after"
        if not calm.is_set() and drawn.random() < (0.5 if lost else 0.2):
            raise MlflowException(f"{when} {name}")

    store = Repeating(trouble)
    use(monkeypatch, store)
    monkeypatch.setattr("kinopoisk_ft.tracking.delivery.MOST_METRICS", 7)
    run = tracker(URI)
    tell(run, tmp_path)
    wait_for(lambda: len(store.requests) > 40)
    calm.set()
    run.finish("FINISHED")
    assert store.values() == told()
    (kept,) = store.runs.values()
    assert kept.params == {"a": "1", "long": "in long_params.json"}
    assert kept.tags["result"] == "good"
    assert set(kept.artifacts) == {"config.yaml", "long_params.json"}
    assert kept.ended[-1] == "FINISHED"
    assert run._delivery.left() == 0


def deliver(folder: Path) -> None:
    """Deliver a folder's log as a new process would."""
    (log,) = event_logs(folder)
    log.open()
    try:
        delivery = Delivery(log, Target(URI, "x"))
        while delivery.step():
            pass
    finally:
        log.close()


def test_killed_at_every_request_and_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before and after each request in turn the process dies; the next one repeats nothing."""
    monkeypatch.setattr("kinopoisk_ft.tracking.delivery.MOST_METRICS", 4)
    requests = last = 0

    def kill(*_: str) -> None:
        nonlocal requests
        requests += 1
        if requests == last:
            raise Killed

    while last <= requests:
        requests, last = 0, last + 1
        store = Repeating(kill)
        use(monkeypatch, store)
        folder = tmp_path / str(last)
        run = offline()
        tell(run, folder, steps=5)
        run.finish("FINISHED")
        with suppress(Killed):
            deliver(folder)
        store.trouble = lambda *_: None
        deliver(folder)
        assert store.values() == told(5), last
        (kept,) = store.runs.values()
        assert (kept.tags["result"], kept.ended[-1]) == ("good", "FINISHED")
    assert last > 20


def test_what_the_store_refuses_holds_up_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = Repeating()
    log_batch = store.log_batch

    def picky(run_id: str, metrics: Any = (), **rest: Any) -> None:
        if any(metric.key == "bad name" for metric in metrics):
            raise MlflowException("Invalid metric name", error_code=INVALID_PARAMETER_VALUE)
        log_batch(run_id, metrics, **rest)

    monkeypatch.setattr(store, "log_batch", picky)
    use(monkeypatch, store)
    run = tracker(URI)
    run.start("one", {}, {}, folder=tmp_path)
    for step in range(3):
        run.metrics({"loss": 0.5}, step)
    run.metrics({"bad name": 1.0}, 3)
    run.metrics({"loss": 0.5}, 4)
    run.artifact(tmp_path / "never_made.txt")
    run.finish("FINISHED")
    assert store.values() == [("loss", step, 0.5) for step in (0, 1, 2, 4)]
    assert "does not have: metrics bad name: Invalid metric name; artifact" in caplog.text
    assert "never_made.txt is gone" in caplog.text
    (kept,) = store.runs.values()
    assert kept.ended == ["FINISHED"]


def test_files_of_other_places_are_refused(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "model").mkdir()
    for link in ("link", "model/weights"):
        (tmp_path / "run" / link).symlink_to(tmp_path / "secret")
    assert located(portable(tmp_path / "run" / "a", tmp_path / "run"), tmp_path) == tmp_path / "a"
    with pytest.raises(ValueError, match="not in the run's folder"):
        portable(tmp_path / "secret", tmp_path / "run")
    for text in (
        "run:../secret",
        "run:/etc/passwd",
        "run:link",
        "run:model",
        "package:../x",
        "/etc/passwd",
    ):
        with pytest.raises(ValueError, match="leads out"):
            located(text, tmp_path / "run")


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One real store: its tables take seconds to make."""
    return f"sqlite:///{tmp_path_factory.mktemp('store') / 'mlflow.db'}"


@pytest.mark.slow
def test_a_stopped_run_goes_on_without_repeating(uri: str, tmp_path: Path) -> None:
    first = tracker(uri)
    run_id = first.start("one", {"a": 1}, {}, folder=tmp_path)
    first.metrics({"loss": 0.5}, 1)
    first.tags({"error": "power cut"})
    first.finish("KILLED")
    second = tracker(uri)
    again = second.start("one", {"a": 2, "b": 3}, {}, kept=run_id, folder=tmp_path)
    assert again == run_id
    for step in (1, 2):
        second.metrics({"loss": 0.5 / step}, step)
    second.finish("FINISHED")
    client = MlflowClient(uri)
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params == {"a": "1", "b": "3"}
    assert "error" not in run.data.tags
    assert logged(client, run_id, "loss") == [(1, 0.5), (2, 0.25)]
    third = tracker(uri)
    assert third.start("one", {}, {}, kept="0" * 32, folder=tmp_path) != run_id
    third.finish("FINISHED")


def test_a_run_that_the_store_has_lost_is_made_again(
    uri: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = tracker(uri)
    run_id = tell(first, tmp_path, steps=3)
    first.finish("KILLED")
    client = MlflowClient(uri)
    client.delete_run(run_id)
    second = tracker(uri)
    again = second.start("one", {}, {}, kept=run_id, folder=tmp_path)
    second.metrics({"loss": 9.0}, 3)
    second.finish("FINISHED")
    assert again != run_id
    assert f"the store has lost {run_id}" in caplog.text
    assert logged(client, again, "loss") == [(0, 1.0), (1, 0.5), (2, 1 / 3), (3, 9.0)]


def test_a_locked_database_holds_up_nothing(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    hurry(monkeypatch)
    monkeypatch.setattr(mlflow_module, "END", {"FINISHED": 0.05})
    run = tracker(uri, experiment="locked")
    run_id = run.start("one", {}, {}, folder=tmp_path)
    wait_for(lambda: run._delivery.left() == 0)
    with sqlite3.connect(uri.removeprefix("sqlite:///"), isolation_level=None) as database:
        database.execute("BEGIN EXCLUSIVE")
        for step in range(5):
            run.metrics({"loss": float(step)}, step)
        run.finish("FINISHED")
        assert "6 of this run's events are not in the MLflow store yet" in caplog.text
        database.execute("ROLLBACK")
    database.close()
    run._courier._thread.join()  # type: ignore[union-attr]
    assert sync.main([str(tmp_path)]) == 0
    client = MlflowClient(uri)
    assert client.get_run(run_id).info.status == "FINISHED"
    assert logged(client, run_id, "loss") == [(step, float(step)) for step in range(5)]


@pytest.mark.slow
def test_a_database_that_is_locked_at_the_start(
    uri: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """SQLite gives up after five seconds."""
    tracker(uri, experiment="late").find({"any": "tag"})
    with sqlite3.connect(uri.removeprefix("sqlite:///"), isolation_level=None) as database:
        database.execute("BEGIN EXCLUSIVE")
        run = tracker(uri, experiment="late")
        assert run.find({"any": "tag"}) is None
        run_id = tell(run, tmp_path)
        database.execute("ROLLBACK")
    database.close()
    assert run_id.startswith("offline-")
    assert "without the MLflow store" in caplog.text
    caplog.set_level(logging.INFO)
    run.finish("FINISHED")
    made = run._delivery.sent.run_id
    assert f"in the MLflow store this run is {made}" in caplog.text
    assert len(logged(MlflowClient(uri), made, "loss")) == 30


def test_a_server_that_fails_in_every_way(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    hurry(monkeypatch)
    monkeypatch.setattr(mlflow_module, "END", {"FINISHED": 0.05})
    server = Server(uri, tmp_path / "artifacts")
    try:
        server.mode = "500"
        run = tracker(server.url, experiment="server")
        assert run.find({"any": "tag"}) is None
        run_id = run.start("one", {"a": 1}, {}, folder=tmp_path / "out")
        assert run_id.startswith("offline-")
        run.tags({"result": f'{{"run_id": "{run_id}"}}'})
        run.metrics({"loss": 0.0}, 0)
        server.mode = "works"
        wait_for(lambda: run._delivery.left() == 0)
        assert "takes metrics again" in caplog.text
        server.mode = "lost"
        run.metrics({"loss": 1.0}, 1)
        made = run._delivery.sent.run_id
        client = MlflowClient(uri)
        wait_for(lambda: len(logged(client, made, "loss")) == 2)
        server.mode = "hangs"
        run.metrics({"loss": 2.0}, 2)
        run.finish("FINISHED")
        assert "events are not in the MLflow store yet" in caplog.text
        server.mode = "works"
        run._courier._thread.join()  # type: ignore[union-attr]
        assert sync.main([str(tmp_path)]) == 0
        assert logged(client, made, "loss") == [(0, 0.0), (1, 1.0), (2, 2.0)]
        found = client.get_run(made)
        assert found.info.status == "FINISHED"
        assert found.data.tags["result"] == f'{{"run_id": "{made}"}}'
    finally:
        server.stop()
    gone = tracker(server.url)
    assert gone.start("two", {}, {}, folder=tmp_path / "two").startswith("offline-")
    gone.finish("FINISHED")
    assert sync.main([str(tmp_path / "two")]) == 1
