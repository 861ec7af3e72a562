"""Serve a model with MLflow's command, and send it requests over HTTP."""

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
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

# Compiling the kernels and importing torch takes long on a busy machine.
PATIENCE = 300.0


def make_command(verb: str, uri: str, *more: str) -> list[str]:
    """Return `mlflow models <verb>` for a model, as docs/publish.md writes it."""
    return [sys.executable, "-m", "mlflow", "models", verb, "-m", uri,
            "--env-manager", "local", *more]  # fmt: skip


def make_environment(more: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of the command, with `more` variables."""
    # MLflow starts `uvicorn` from the PATH, as after the activation of the virtual environment.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, **more}


@contextmanager
def serve(uri: str, away: Path, more: Mapping[str, str] = {}) -> Iterator[str]:
    """Serve a model on a free port, from the folder `away`; yield the URL."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with (away / "log").open("w") as log:
        server = subprocess.Popen(
            make_command("serve", uri, "--host", "127.0.0.1", "--port", str(port)),
            env=make_environment(more), cwd=away, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    try:
        url, end = f"http://127.0.0.1:{port}", time.monotonic() + PATIENCE
        while not answers(f"{url}/health"):
            assert server.poll() is None, (away / "log").read_text()
            assert time.monotonic() < end, (away / "log").read_text()
            time.sleep(0.5)
        yield url
    finally:
        # If the server could not start, its process group does not exist.
        with suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def make_request(texts: Sequence[str]) -> dict[str, object]:
    """Return the body of a request for the classes of texts."""
    return {"dataframe_split": {"columns": ["text"], "data": [[text] for text in texts]}}


def post(url: str, texts: Sequence[str]) -> tuple[int, dict[str, Any]]:
    """Send texts to a server; return the status and the JSON of the answer."""
    body = json.dumps(make_request(texts), ensure_ascii=False).encode()
    sent = urllib.request.Request(f"{url}/invocations", body, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(sent, timeout=PATIENCE) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)
