"""Test that a store neither stops nor slows a run, and gets each event once and in order."""

from __future__ import annotations

import random
import threading
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from tracked import URI, FakeStore, hurry, is_sent, offline, record, tracker, use, wait_for

from kinopoisk_ft.errors import UserError
from kinopoisk_ft.tracking import mlflow as mlflow_module
from kinopoisk_ft.tracking.delivery import LAST_TRIES, Delivery
from kinopoisk_ft.tracking.event_log import find_logs
from kinopoisk_ft.tracking.replay import Replay, Target


class Killed(BaseException):
    """An exception that ends a process, because no delivery catches it."""


def expected(steps: int = 30) -> list[tuple[str, int, float]]:
    return [(k, s, v) for s in range(steps) for k, v in (("loss", 1 / (s + 1)), ("lr", 0.1))]


def test_training_continues_while_the_store_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The store answers only after the whole run is recorded."""
    answer = threading.Event()

    def hang(*_: str) -> None:
        answer.wait(60)

    store = FakeStore(hang)
    use(monkeypatch, store)
    monkeypatch.setattr(mlflow_module, "START_LOCAL", 0.05)
    monkeypatch.setattr(mlflow_module, "END", {"FINISHED": 60.0, "KILLED": 0.05})
    run = tracker(URI)
    run_id = record(run, tmp_path)
    assert run_id.startswith("offline-")
    assert "without the MLflow store: no answer in" in caplog.text
    run.flush()
    assert not store.runs
    run.finish("KILLED")
    assert "events of this run are not in the MLflow store yet" in caplog.text
    answer.set()
    run._delivery._thread.join()

    again = tracker(URI)
    kept = again.start("one", {"a": 1}, {}, resume=run_id, folder=tmp_path)
    assert kept in store.runs
    again.finish("FINISHED")
    assert store.values() == expected()
    (ended,) = (run.ended for run in store.runs.values())
    assert ended == ["KILLED", "RUNNING", "FINISHED"]


@pytest.mark.parametrize("seed", range(6))
def test_random_failures_repeat_no_value(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request fails before or after the store has executed it."""
    drawn, calm = random.Random(seed), threading.Event()

    def trouble(when: str, name: str) -> None:
        lost = name in ("create_run", "log_batch", "set_terminated") and when == "after"
        if not calm.is_set() and drawn.random() < (0.5 if lost else 0.2):
            raise MlflowException(f"{when} {name}")

    store = FakeStore(trouble)
    use(monkeypatch, store)
    monkeypatch.setattr("kinopoisk_ft.tracking.replay.MAX_METRICS", 7)
    run = tracker(URI)
    record(run, tmp_path)
    wait_for(lambda: len(store.requests) > 40)
    calm.set()
    run.finish("FINISHED")
    assert store.values() == expected()
    (kept,) = store.runs.values()
    assert kept.params == {"a": "1", "long": "in long_params.json"}
    assert kept.tags["result"] == "good"
    assert set(kept.artifacts) == {"config.yaml", "long_params.json"}
    assert kept.ended[-1] == "FINISHED"
    assert is_sent(run)


def replay(folder: Path) -> None:
    """Replay the log of a folder, like a new process."""
    (log,) = find_logs(folder)
    log.open()
    try:
        one = Replay(log, Target(URI, "x"))
        while one.step():
            pass
    finally:
        log.close()


def test_a_replay_that_is_killed_at_any_request_is_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process dies before or after each request; the next process repeats no value."""
    monkeypatch.setattr("kinopoisk_ft.tracking.replay.MAX_METRICS", 4)
    requests = last = 0

    def kill(*_: str) -> None:
        nonlocal requests
        requests += 1
        if requests == last:
            raise Killed

    while last <= requests:
        requests, last = 0, last + 1
        store = FakeStore(kill)
        use(monkeypatch, store)
        folder = tmp_path / str(last)
        run = offline()
        record(run, folder, steps=5)
        run.finish("FINISHED")
        with suppress(Killed):
            replay(folder)
        store.trouble = lambda *_: None
        replay(folder)
        assert store.values() == expected(5), last
        (kept,) = store.runs.values()
        assert (kept.tags["result"], kept.ended[-1]) == ("good", "FINISHED")
    assert last > 20


def test_events_that_the_store_refuses_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = FakeStore()
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
    run._log.append("metrics", values={}, step=5)
    run.artifact(tmp_path / "never_made.txt")
    run.finish("FINISHED")
    assert store.values() == [("loss", step, 0.5) for step in (0, 1, 2, 4)]
    assert (
        "not sent to the MLflow store: metrics bad name: Invalid metric name; artifact"
        in caplog.text
    )
    assert "never_made.txt does not exist any more" in caplog.text
    (kept,) = store.runs.values()
    assert kept.ended == ["FINISHED"]


@pytest.mark.parametrize(("more", "complete"), [(LAST_TRIES - 1, True), (LAST_TRIES, False)])
def test_an_outage_before_the_end_leaves_the_last_tries(
    more: int, complete: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    hurry(monkeypatch)
    failures, last, closing = 0, threading.Event(), threading.Event()

    def step() -> bool:
        nonlocal failures
        if failures == 2 * LAST_TRIES and not closing.is_set():
            last.set()
            closing.wait(10)
        elif failures > 2 * LAST_TRIES + more:
            return False
        failures += 1
        raise OSError("out of reach")

    delivery = Delivery(cast(Replay, SimpleNamespace(step=step)))
    assert delivery.start(10)
    assert last.wait(10)
    close = delivery._closing.set
    monkeypatch.setattr(delivery._closing, "set", lambda: (close(), closing.set()))
    assert delivery.close(10) is complete


def test_an_error_that_the_user_must_correct_is_not_tried_again() -> None:
    tries = []

    def step() -> bool:
        tries.append(1)
        raise UserError("the experiment is deleted")

    delivery = Delivery(cast(Replay, SimpleNamespace(step=step)))
    delivery.send_rest()
    assert (len(tries), delivery.needs_user()) == (1, True)
