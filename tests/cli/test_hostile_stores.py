"""Test that stores, checkpoints and data sets from other people cannot run code or escape a folder.

If an attack succeeded, it would create a marker file.
"""

from __future__ import annotations

import json
import pickle
import threading
from fnmatch import fnmatch
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import mlflow
import pytest
import tiny
import torch
from hostile import Touch, change, saved
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from places import ROOT

from kinopoisk_ft.data.hub import HubDataset
from kinopoisk_ft.errors import UserError
from kinopoisk_ft.files import compute_sha256
from kinopoisk_ft.run_folder import read_seed
from kinopoisk_ft.serving.locate import find_model_folder
from kinopoisk_ft.serving.predictor import Predictor
from kinopoisk_ft.training.checkpoint.best import BestWeights
from kinopoisk_ft.training.checkpoint.folder import CheckpointFolder

pytestmark = pytest.mark.usefixtures("nobody_answers")


@pytest.fixture
def store(tmp_path: Path) -> tuple[str, MlflowClient, str]:
    """Create a store on disk; return its address, a client and the id of a run."""
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    client = MlflowClient(uri)
    home = client.create_experiment("runs", (tmp_path / "artifacts").as_uri())
    return uri, client, client.create_run(home).info.run_id


def test_predict_runs_nothing_of_a_hostile_run(
    tmp_path: Path, marker: Path, store: tuple[str, MlflowClient, str]
) -> None:
    """MLflow's loader would run code of the logged model and unpickle it."""
    uri, _, run_id = store
    (tmp_path / "code.py").write_text(
        f"open({str(marker)!r}, 'w')\nimport mlflow\nimport pandas as pd\n"
        "class Model(mlflow.pyfunc.PythonModel):\n"
        "    def predict(self, context, model_input: pd.DataFrame, params=None):\n"
        "        return model_input\n"
        "mlflow.models.set_model(Model())\n"
    )
    inner = saved("bert", "none", tmp_path / "made" / "model")
    mlflow.set_tracking_uri(uri)
    with mlflow.start_run(run_id=run_id):
        mlflow.pyfunc.log_model(
            name="model",
            python_model=str(tmp_path / "code.py"),
            artifacts={"model_folder": str(inner)},
            pip_requirements=[],
        )
    # Logging runs the code, which is the user's own code at that time.
    assert marker.exists()
    marker.unlink()
    folder = find_model_folder(run_id, uri)
    (folder.parents[1] / "python_model.pkl").write_bytes(pickle.dumps(Touch(marker)))
    assert len(Predictor(folder, "cpu").predict([tiny.GOOD])) == 1
    assert not marker.exists()


def test_a_run_without_a_model_of_this_project_is_reported(
    store: tuple[str, MlflowClient, str],
) -> None:
    uri, client, run_id = store
    for text in ("[]", "{}", '{"model_dir": 5}', "{", "[" * 100_000,
                 '{"model_dir": "../../etc"}', '{"model_dir": "a\\u0000b"}'):  # fmt: skip
        client.log_text(run_id, text, "result.json")
        with pytest.raises(UserError):
            find_model_folder(run_id, uri)
    for name in ("' or 1=1 --", "../../etc/passwd", "%2e%2e", "a" * 5000, "a\0b"):
        with pytest.raises(UserError):
            find_model_folder(name, uri)


class Listing(BaseHTTPRequestHandler):
    """A store whose list of artifacts has paths that leave the download folder."""

    name = ""

    def do_GET(self) -> None:
        listed = "?" in self.path
        files = {"files": [{"path": self.name, "is_dir": False, "file_size": 1}]}
        body = json.dumps(files).encode() if listed else b"x"
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        """Print nothing."""


@pytest.mark.parametrize("name", ["../../code was run", "%2e%2e/code was run", "/tmp/code was run"])
def test_artifacts_stay_where_they_are_put(tmp_path: Path, marker: Path, name: str) -> None:
    Listing.name = name
    (tmp_path / "a" / "b").mkdir(parents=True)
    with ThreadingHTTPServer(("127.0.0.1", 0), Listing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        uri = f"http://127.0.0.1:{server.server_port}/api/2.0/mlflow-artifacts/artifacts/x"
        with pytest.raises(MlflowException, match="Invalid path"):
            mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=str(tmp_path / "a/b"))
        server.shutdown()
    assert not marker.exists()
    assert not list((tmp_path / "a").rglob("code*"))


def checkpoint(folder: Path, plain: dict[str, Any], **manifest: Any) -> CheckpointFolder:
    """Return a folder with one checkpoint whose manifest is changed."""
    snapshots = CheckpointFolder(folder)
    snapshots.write({"weights.a": torch.zeros(1)}, plain, {})
    change(folder / "checkpoint-000001" / "manifest.json", **manifest)
    return snapshots


def test_a_checkpoint_names_files_of_its_own_folder(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "best.safetensors").write_bytes(b"x")
    outside = {"../best.safetensors": compute_sha256(tmp_path / "best.safetensors")}
    assert checkpoint(tmp_path / "a", {"step": 1}).newest() is not None
    assert checkpoint(tmp_path / "b", {"step": 1}, beside=outside).newest() is None
    assert "contains the name of a file in another folder: ../best.safetensors" in caplog.text
    best = BestWeights(tmp_path / "c")
    best.load_state_dict({"file": "../best.safetensors", "digest": ""})
    assert best.file == tmp_path / "c" / "best.safetensors"


def test_odd_checkpoints_are_not_used(tmp_path: Path) -> None:
    # The process prints nothing.
    assert checkpoint(tmp_path / "a", {}).newest() is None
    for text in ("[" * 100_000, "[]", '{"format": 1, "files": 5, "beside": {}}', "\0"):
        snapshots = checkpoint(tmp_path / "b", {"step": 1})
        (tmp_path / "b" / "checkpoint-000001" / "manifest.json").write_text(text)
        assert snapshots.newest() is None
    (tmp_path / "b" / "checkpoint-mine").mkdir()
    snapshots.write({}, {"step": 1}, {})
    assert [folder.name for folder in snapshots.folders()] == ["checkpoint-000001"]


def test_a_damaged_record_of_an_unfinished_run_is_reported(tmp_path: Path) -> None:
    for text in ("[" * 100_000, "[]", '{"run_id": "a", "config": {"seed": "b"}}',
                 '{"run_id": "a", "config": 5}', "\0"):  # fmt: skip
        (tmp_path / "unfinished.json").write_text(text)
        with pytest.raises(UserError, match="cannot be read"):
            read_seed(tmp_path, "auto")


def test_the_store_is_served_to_this_machine_only() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert "HOST ?= 127.0.0.1" in makefile
    assert "--host $(HOST)" in makefile


def test_code_of_a_data_set_is_not_run(
    tmp_path: Path, marker: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither its script nor its README, which could name a script, is downloaded or run."""
    folder = tmp_path / "snapshot"
    folder.mkdir()
    rows = "".join(f"отзыв {i},{'Good' if i % 2 else 'Bad'}\n" for i in range(40))
    (folder / "reviews.csv").write_text(f"text,label\n{rows}")
    for name in ("tables.py", "snapshot.py", "README.md"):
        (folder / name).write_text(f"open({str(marker)!r}, 'w')")
    asked: dict[str, Any] = {}

    def download(name: str, **options: Any) -> str:
        asked.update(options)
        return str(folder)

    monkeypatch.setattr("kinopoisk_ft.data.hub.snapshot_download", download)
    options: dict[str, Any] = {"limit": None, "classes": None, "max_length": 32, "empty": "drop"}
    data = HubDataset(name="some/tables", text_column="text", label_column="label", **options)
    assert data.load().counts["rows_read"] == 40
    assert not marker.exists()
    patterns = asked["allow_patterns"]
    assert patterns
    assert not any(fnmatch(name, p) for p in patterns for name in ("tables.py", "README.md"))
