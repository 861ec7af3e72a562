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
from mlflow.entities import Run
from report_store import Store, report

from kinopoisk_ft.reporting.saved_view import MODEL_TRAINING, view_columns

# A server starts in about 5 s, and each page waits for its scripts.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine"),
]
# Seconds until a server on a busy machine has started.
PATIENCE = 120
# Milliseconds that a page may take to load, in the first attempt and in the next ones.
BUDGETS = (30_000, 60_000, 120_000)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Train a sweep of two approaches, register the models, and report the sweep."""
    folder = tmp_path_factory.mktemp("ui")
    made = Store(folder)
    command = [sys.executable, "-m", "kinopoisk_ft", "-m", "model=tfidf,bert_scratch", "data=demo"]
    command += [
        "data.reviews=200",
        "data.max_length=16",
        "trainer.epochs=1",
        f"tracking.uri={made.uri}",
    ]
    command += ["tracking.register=reviews", f"hydra.sweep.dir={folder / 'sweep'}"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    made.sweep = json.loads((folder / "sweep" / "jobs" / "parent.json").read_text())
    report(made, folder / "report", f"parent={made.sweep}", figures=True)
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


def page(server: str, path: str, expected: str = "</html>") -> str:
    """Return a page; it is opened again if a busy machine has not drawn `expected` in time."""
    for budget in BUDGETS:
        wait = f"--virtual-time-budget={budget}"
        dom, complaints = visit(f"{server}/#/{path}", "--window-size=2400,2000", "--dump-dom", wait)
        assert "Uncaught" not in complaints
        if expected in dom:
            break
    return dom


def home(store: Store) -> str:
    return store.client.get_run(store.sweep).info.experiment_id


def trained(store: Store) -> list[Run]:
    """Return the runs of the sweep, best test score first."""
    order = ["metrics.`test/f1_weighted` DESC"]
    return store.client.search_runs(
        [home(store)], "tags.`kinopoisk_ft.kind` = 'train'", order_by=order
    )


def test_the_experiment_opens_as_model_training(store: Store, server: str) -> None:
    dom = page(server, f"experiments/{home(store)}?{MODEL_TRAINING}")
    assert "Model registry" in dom
    assert "Judges" not in dom
    assert ">sweep<" in dom
    assert f"#/experiments/{home(store)}/runs?viewStateShareKey=kinopoisk_ft" in dom


def test_the_view_has_the_runs_by_score_with_the_columns_that_matter(
    store: Store, server: str
) -> None:
    address = f"experiments/{home(store)}/runs?viewStateShareKey=kinopoisk_ft&{MODEL_TRAINING}"
    dom = page(server, address, "aria-sort")
    assert "Comparison" in dom
    cells = re.findall(r'col-id="([a-z]+\.`[\w/]+`)"[^>]*aria-sort[^>]*left: (\d+)px', dom)
    shown = [name for name, _ in sorted(cells, key=lambda cell: int(cell[1]))]
    assert shown[0] == "metrics.`test/f1_weighted`"
    # No run of this sweep has recorded the number of tuning trials.
    assert shown == [name for name in view_columns()[1:] if "tuning_trials" not in name]
    names = [run.info.run_name for run in trained(store)]
    assert len(names) == 2
    assert [dom.index(f">{name}<") for name in names] == sorted(dom.index(f">{n}<") for n in names)
    for run in trained(store):
        assert str(run.data.metrics["test/f1_weighted"])[:7] in dom

    dom = page(server, f"{address}&compareRunsMode=CHART", 'title="val/f1_weighted"')
    assert "Comparison" in dom
    # Only the first section of charts is open.
    titles = re.findall(r'<h4[^>]*title="([\w/. ]+)"', dom)
    curves = ["train/loss", "val/loss", "val/f1_weighted"]
    scatter = "time/train_seconds vs. test/f1_weighted"
    assert titles == [scatter, "test/f1_weighted", "time/train_seconds", *curves]
    assert ">leakage<" in dom


def test_the_sweep_shows_the_conclusion_and_the_plots(store: Store, server: str) -> None:
    dom = page(server, f"experiments/{home(store)}/runs/{store.sweep}?{MODEL_TRAINING}")
    best = trained(store)[0]
    for part in ("weighted F1", best.info.run_id, str(best.data.metrics["test/f1_weighted"])):
        assert part in dom
    dom = page(server, f"experiments/{home(store)}/runs/{store.sweep}/artifacts/report")
    for picture in ("comparison.png", "comparison.html"):
        assert picture in dom


def test_runs_are_compared_side_by_side(store: Store, server: str) -> None:
    runs = trained(store)
    ids = quote(json.dumps([run.info.run_id for run in runs]))
    dom = page(server, f"compare-runs?runs={ids}&experiments={quote(json.dumps([home(store)]))}")
    assert "Comparing 2 Runs" in dom
    for run in runs:
        assert run.info.run_name in dom
        assert run.info.run_id in dom
        # The table makes rows as they are scrolled to, in the order of the alphabet.
        temperature = run.data.metrics["calibration/temperature"]
        assert f"{temperature:.3f}".rstrip("0") in dom
    for name in ("calibration/temperature", "data/train_reviews"):
        assert f">{name}<" in dom


def test_a_model_has_the_test_scores_and_a_registered_version(store: Store, server: str) -> None:
    best = trained(store)[0]
    (output,) = best.outputs.model_outputs
    dom = page(server, f"experiments/{home(store)}/models/{output.model_id}?{MODEL_TRAINING}")
    assert best.data.tags["approach"] in dom
    for name in ("test/accuracy", "test/f1_weighted"):
        assert f">{name}<" in dom
        assert str(best.data.metrics[name]) in dom
    assert "demo (#" in dom
    assert f"kinopoisk-ft predict {best.info.run_id}" in dom
    dom = page(server, "models/reviews")
    assert "champion" in dom
    assert "Version 2" in dom
