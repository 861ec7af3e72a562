"""Test MLflow's pages of a sweep in a browser: they show the same results as the report."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

import pytest
from browser import CHROMIUM, visit
from report_example import example_store
from report_store import Store, report

from kinopoisk_ft.reporting.output import view_columns

# A server starts in about 5 s, and each page waits for its scripts.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine"),
]
# Seconds until a server on a busy machine has started.
PATIENCE = 120
# Milliseconds that a page may take to load.
WAIT = "--virtual-time-budget=30000"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    made = example_store(tmp_path_factory.getbasetemp())
    # MLflow shows no column for a metric that no run has.
    for run in made.client.search_runs([home(made)], "tags.`kinopoisk_ft.kind` = 'train'"):
        made.client.log_metric(run.info.run_id, "test_mcc", 0.5)
    report(made, tmp_path_factory.mktemp("ui"), f"parent={made.sweep}")
    return made


@pytest.fixture(scope="module")
def server(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", store.uri]
    command += ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    log = tmp_path_factory.mktemp("server") / "log.txt"
    # Job queues would start seven more processes, and no test needs them.
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with log.open("w") as stream:
        running = subprocess.Popen(command, stdout=stream, stderr=stream, env=environment)
    try:
        yield _answering(f"http://127.0.0.1:{port}", running, log)
    finally:
        running.terminate()
        running.wait(PATIENCE)


def _answering(address: str, running: subprocess.Popen, log: Path) -> str:
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end and running.poll() is None:
        with suppress(OSError), urllib.request.urlopen(f"{address}/health") as answer:
            assert answer.status == 200
            return address
        time.sleep(0.2)
    raise AssertionError(log.read_text())


def page(server: str, path: str) -> str:
    dom, complaints = visit(f"{server}/#/{path}", "--window-size=2400,2000", "--dump-dom", WAIT)
    assert "Uncaught" not in complaints
    return dom


def home(store: Store) -> str:
    return store.client.get_run(store.sweep).info.experiment_id


def test_runs_are_under_their_sweep_with_the_columns_that_matter(store: Store, server: str) -> None:
    dom = page(server, f"experiments/{home(store)}/runs?viewStateShareKey=kinopoisk_ft")
    cells = re.findall(r'col-id="([a-z]+\.`\w+`)"[^>]*aria-sort[^>]*left: (\d+)px', dom)
    assert [name for name, _ in sorted(cells, key=lambda cell: int(cell[1]))] == view_columns()[1:]
    assert "Comparison" in dom
    assert ">study<" in dom
    # The runs are collapsed under the sweep.
    assert "bert, seed 0" not in dom
    children = store.client.search_runs([home(store)], "tags.`kinopoisk_ft.kind` = 'train'")
    assert len(children) == 13
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {store.sweep}


def test_the_sweep_shows_the_conclusion_and_the_plots(store: Store, server: str) -> None:
    dom = page(server, f"experiments/{home(store)}/runs/{store.sweep}")
    for part in (
        "Which approach to take",
        "Quality first",
        "No significant difference from it",
        "F1 weighted",
    ):
        assert part in dom
    assert "bert + lora, seed 2" in dom
    dom = page(server, f"experiments/{home(store)}/runs/{store.sweep}/artifacts/report")
    for picture in ("comparison.png", "comparison-differences.svg", "comparison.html"):
        assert picture in dom


def test_runs_are_compared_side_by_side(store: Store, server: str) -> None:
    children = store.client.search_runs([home(store)], "tags.seed = '0'")
    ids = quote(json.dumps([run.info.run_id for run in children]))
    dom = page(server, f"compare-runs?runs={ids}&experiments={quote(json.dumps([home(store)]))}")
    assert "Comparing 5 Runs" in dom
    for run in children:
        assert run.info.run_name in dom
        assert run.info.run_id in dom
    # The table creates rows in alphabetical order when they are scrolled into view.
    for name in ("eval_seconds", "majority_f1_weighted", "peak_memory_mb", "test_accuracy"):
        assert f">{name}<" in dom
