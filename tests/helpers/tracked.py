"""Provide a store and a server that fail on request, for tests of tracking."""

from __future__ import annotations

import errno
import os
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from wsgiref.types import StartResponse, WSGIEnvironment

import pytest
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST
from werkzeug.serving import WSGIRequestHandler, make_server

from kinopoisk_ft.tracking.mlflow import MlflowTracker
from kinopoisk_ft.tracking.mlflow_names import from_mlflow
from kinopoisk_ft.tracking.offline import OfflineTracker

URI = "sqlite:////nowhere/mlflow.db"


def tracker(uri: str, experiment: str = "x") -> MlflowTracker:
    return MlflowTracker(uri=uri, artifacts=None, experiment=experiment, log_model=False)


def offline(uri: str | None = None, experiment: str = "x") -> OfflineTracker:
    return OfflineTracker(uri=uri, artifacts=None, experiment=experiment, log_model=False)


def record(run: OfflineTracker, folder: Path, steps: int = 30) -> str:
    """Record a whole run except its end; return its id."""
    run_id = run.start("one", {"a": 1, "long": "z" * 7000}, {"k": "v"}, folder=folder)
    (folder / "config.yaml").write_text("a: 1")
    run.artifact(folder / "config.yaml")
    for step in range(steps):
        run.metrics({"loss": 1 / (step + 1), "lr": 0.1}, step)
    run.tags({"result": "good"})
    return run_id


@dataclass
class Kept:
    """A run in a `FakeStore`."""

    info: Any
    tags: dict[str, str]
    metrics: list[Any] = field(default_factory=list)
    params: dict[str, str] = field(default_factory=dict)
    artifacts: list[str] = field(default_factory=list)
    ended: list[str] = field(default_factory=list)

    @property
    def data(self) -> Any:
        metrics = {metric.key: metric.value for metric in self.metrics}
        return SimpleNamespace(tags=self.tags, metrics=metrics, params=self.params)


class FakeStore:
    """A client whose store ignores a metric that it already has, as MLflow's databases do.

    Args:
        trouble: called before and after each request, with its name; may raise.
    """

    def __init__(self, trouble: Callable[[str, str], None] = lambda *_: None) -> None:
        self.trouble, self.runs = trouble, dict[str, Kept]()
        self.requests: list[str] = []

    def __getattribute__(self, name: str) -> Any:
        found = object.__getattribute__(self, name)
        if name.startswith("_") or name in ("trouble", "runs", "requests"):
            return found

        def request(*args: Any, **kwargs: Any) -> Any:
            self.requests.append(name)
            self.trouble("before", name)
            answer = found(*args, **kwargs)
            self.trouble("after", name)
            return answer

        return request

    def get_run(self, run_id: str) -> Kept:
        if run_id not in self.runs:
            raise MlflowException("gone", error_code=RESOURCE_DOES_NOT_EXIST)
        return self.runs[run_id]

    def search_experiments(self) -> list[Any]:
        return [SimpleNamespace(experiment_id="1")]

    def search_runs(self, experiments: list[str], text: str, max_results: int) -> list[Kept]:
        wanted = text.split("'")[1]
        return [run for run in self.runs.values() if wanted in run.tags.values()][:max_results]

    def create_run(self, experiment: str, start_time: int, tags: dict[str, str],
                   run_name: str) -> Kept:  # fmt: skip
        run_id = f"{len(self.runs):032x}"
        info = SimpleNamespace(run_id=run_id, lifecycle_stage="active", start_time=start_time)
        self.runs[run_id] = Kept(info, dict(tags))
        return self.runs[run_id]

    def log_batch(self, run_id: str, metrics: Any = (), params: Any = (), tags: Any = ()) -> None:
        run = self.runs[run_id]
        known = {(m.key, m.step, m.timestamp, m.value) for m in run.metrics}
        new = [m for m in metrics if (m.key, m.step, m.timestamp, m.value) not in known]
        run.metrics += new
        run.params |= {param.key: param.value for param in params}
        run.tags |= {tag.key: tag.value for tag in tags}

    def get_metric_history(self, run_id: str, key: str) -> list[Any]:
        return [metric for metric in self.runs[run_id].metrics if metric.key == key]

    def log_artifact(self, run_id: str, path: str) -> None:
        self.runs[run_id].artifacts.append(Path(path).name)

    def log_text(self, run_id: str, text: str, name: str) -> None:
        self.runs[run_id].artifacts.append(name)

    def set_terminated(self, run_id: str, status: str, end_time: int) -> None:
        self.runs[run_id].ended.append(status)

    def update_run(self, run_id: str, status: str) -> None:
        self.runs[run_id].ended.append(status)

    def values(self) -> list[tuple[str, int, float]]:
        """Return all metrics of the only run, by flat name, in the order in which they arrived."""
        (run,) = self.runs.values()
        return [(from_mlflow(m.key), m.step, m.value) for m in run.metrics]


def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the pauses of deliveries."""
    for name in ("PAUSE", "MAX_PAUSE", "INTERVAL"):
        monkeypatch.setattr(f"kinopoisk_ft.tracking.delivery.{name}", 0.01)


def use(monkeypatch: pytest.MonkeyPatch, client: Any) -> None:
    """Make trackers log to this client."""
    monkeypatch.setattr("kinopoisk_ft.tracking.replay.open_experiment", lambda *_: (client, "1"))
    hurry(monkeypatch)


class Server:
    """MLflow's server on 127.0.0.1, which can be made to fail.

    `mode` is "works", "500" (does nothing), "lost" (does the work and answers 500) or "hangs".
    """

    def __init__(self, uri: str, artifacts: Path) -> None:
        os.environ["_MLFLOW_SERVER_FILE_STORE"] = uri
        os.environ["_MLFLOW_SERVER_ARTIFACT_ROOT"] = artifacts.as_uri()
        from mlflow.server import app

        self.mode, self.hung = "works", threading.Event()
        self._app = app
        self._server = make_server(
            "127.0.0.1", 0, self._answer, threaded=True, request_handler=_Silent
        )
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()

    def _answer(self, environ: WSGIEnvironment, start: StartResponse) -> Any:
        mode = self.mode
        if mode == "hangs":
            self.hung.wait(60)
        if mode in ("500", "hangs"):
            start("500 Internal Server Error", [])
            return [b""]
        if mode == "lost":
            list(self._app(environ, lambda *_: lambda _: None))
            start("500 Internal Server Error", [])
            return [b""]
        return self._app(environ, start)

    def stop(self) -> None:
        self.hung.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        for name in ("_MLFLOW_SERVER_FILE_STORE", "_MLFLOW_SERVER_ARTIFACT_ROOT"):
            os.environ.pop(name)


class _Silent(WSGIRequestHandler):
    def log(self, *_: Any) -> None:
        """Log nothing."""


def refuse_access(*_: object, **__: object) -> None:
    """Raise the error of a file of another user, which root would not get."""
    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), "a.lock")


def is_sent(run: OfflineTracker) -> bool:
    """Return whether the store has everything that the run has recorded so far."""
    return run._log.state.seq == run._log.seq


def wait_for(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    """Wait until a condition holds; fail after a time that is only reached by an error."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def read_unchecked(log: Path) -> str:
    """Return the lines of an event log without checksums, so that they can be changed."""
    return re.sub(r', "crc": \d+\}', "}", log.read_text("utf-8"))
