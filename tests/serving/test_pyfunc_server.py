"""Serve a logged model with MLflow's own commands, and ask it over HTTP."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from command_line import BERT, run
from command_line import _here as _here
from command_line import place as place

from kinopoisk_ft.serving.predictor import Predictor

TEXTS = ["Прекрасный фильм, всем советую.", "Скучный сюжет, жаль времени.", "Фильм ужасный."]
REQUEST = {"dataframe_split": {"columns": ["text"], "data": [[text] for text in TEXTS]}}
# Compiling the kernels and importing torch takes long on a busy machine.
PATIENCE = 300.0


@pytest.fixture(scope="module")
def logged(place: Path) -> dict[str, Path]:
    """The output folders of two runs that logged their models to the store in `place`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setenv("KINOPOISK_FT_CACHE", str(place / "cache"))
        assert run(*BERT, "adapter=lora", "output_dir=lora") == 0
        assert run("model=tfidf", "model.min_df=1", "output_dir=tfidf") == 0
    return {name: place / name for name in ("lora", "tfidf")}


def make_command(verb: str, folder: Path, *more: str) -> list[str]:
    """Return `mlflow models <verb>` for the model of a run, as docs/publish.md writes it."""
    run_id = json.loads((folder / "result.json").read_text("utf-8"))["run_id"]
    uri = f"runs:/{run_id}/model"
    return [sys.executable, "-m", "mlflow", "models", verb, "-m", uri,
            "--env-manager", "local", *more]  # fmt: skip


def make_environment(folder: Path) -> dict[str, str]:
    # MLflow starts `uvicorn` from the PATH, as after the activation of the virtual environment.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    store = f"sqlite:///{folder.parent / 'mlflow.db'}"
    return {**os.environ, "PATH": path, "MLFLOW_TRACKING_URI": store}


@contextmanager
def serve(folder: Path, away: Path) -> Iterator[str]:
    """Serve the model of a run on a free port; yield the URL."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with (away / "log").open("w") as log:
        server = subprocess.Popen(
            make_command("serve", folder, "--host", "127.0.0.1", "--port", str(port)),
            env=make_environment(folder), cwd=away, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    try:
        url, end = f"http://127.0.0.1:{port}", time.monotonic() + PATIENCE
        while not answers(f"{url}/health"):
            assert server.poll() is None, (away / "log").read_text()
            assert time.monotonic() < end, (away / "log").read_text()
            time.sleep(0.5)
        yield url
    finally:
        # The group is gone if the server could not start.
        with suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def check(predictions: list[dict[str, object]], folder: Path) -> None:
    found, expected = pd.DataFrame(predictions), Predictor(folder / "model", "cpu").predict(TEXTS)
    assert found["label"].tolist() == expected["label"].tolist()
    columns = ["p_minus", "p_plus"]
    assert np.allclose(found[columns], expected[columns], atol=1e-4)
    # A model that answers the same to all texts could not show that the texts arrived.
    assert expected["p_plus"].nunique() == len(TEXTS)


def post(url: str, request: dict[str, object]) -> tuple[int, dict[str, Any]]:
    """Send a request to a server; return the status and the JSON of the answer."""
    body = json.dumps(request, ensure_ascii=False).encode()
    sent = urllib.request.Request(f"{url}/invocations", body, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(sent, timeout=PATIENCE) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lora", "tfidf"])
def test_the_server_answers_like_predict(
    logged: dict[str, Path], tmp_path: Path, name: str
) -> None:
    with serve(logged[name], tmp_path) as url:
        status, answer = post(url, REQUEST)
        assert status == 200
        check(answer["predictions"], logged[name])
        status, answer = post(url, {"dataframe_split": {"columns": ["text"], "data": [[" "]]}})
        assert status == 400
        assert "1 of 1 texts are empty" in answer["message"]


@pytest.mark.slow
def test_the_command_predicts_like_predict(logged: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "in.json").write_text(json.dumps(REQUEST, ensure_ascii=False), "utf-8")
    command = make_command("predict", logged["lora"], "-i", "in.json", "-o", "out.json")
    environment = make_environment(logged["lora"])
    subprocess.run(command, env=environment, cwd=tmp_path, check=True, capture_output=True)
    out = json.loads((tmp_path / "out.json").read_text("utf-8"))
    check(out["predictions"], logged["lora"])
