"""What comes from elsewhere is data: no model, run, config, table or store runs code or leads out.

Each attack, if it succeeded, would leave a marker file.
"""

from __future__ import annotations

import json
import os
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
from composing import compose_config, plain
from hostile import (
    Touch,
    change,
    copied,
    saved,
    with_code,
    with_honest_pickle,
    with_pickle,
    works,
)
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from kinopoisk_ft.cli import main
from kinopoisk_ft.config import check
from kinopoisk_ft.data.hub import HubDataset
from kinopoisk_ft.errors import UserError
from kinopoisk_ft.models.encoder import Encoder
from kinopoisk_ft.models.foreign import is_inside
from kinopoisk_ft.models.mamba_recipe import read_config, read_weights
from kinopoisk_ft.models.saving import CARD, load_network, read_card
from kinopoisk_ft.models.tokenizers import load_tokenizer
from kinopoisk_ft.serving.locate import model_folder
from kinopoisk_ft.serving.predictor import Predictor
from kinopoisk_ft.training.checkpoint import BestWeights
from kinopoisk_ft.training.disk import sha256
from kinopoisk_ft.training.snapshots import Snapshots
from kinopoisk_ft.unfinished import kept_seed

ROOT = Path(__file__).parents[1]
ENCODER: dict[str, Any] = {
    "revision": None, "pooling": "auto", "dropout": None, "lr": 1e-3, "head_lr": None, "targets": {}
}  # fmt: skip


@pytest.fixture(autouse=True)
def _nobody_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever is asked whether code may be run says yes: nobody must be asked."""
    monkeypatch.setattr("builtins.input", lambda *_: "y")


def test_the_attack_is_one(marker: Path) -> None:
    works(marker)


def test_code_of_a_base_is_not_run(tmp_path: Path, marker: Path) -> None:
    folder = str(with_code(copied(tiny.bert(), tmp_path / "base"), marker))
    recipe = Encoder(name=folder, tokenizer=folder, **ENCODER)
    for load in (lambda: recipe.build(("Bad", "Good"), None), lambda: recipe.build_lm(None),
                 lambda: read_config(folder, None), lambda: load_tokenizer(folder)):  # fmt: skip
        with pytest.raises(UserError, match="cannot be loaded"):
            load()
    assert not marker.exists()


@pytest.mark.parametrize("kind", ["bert", "pooled", "mamba"])
def test_code_of_a_trained_model_is_not_run(tmp_path: Path, marker: Path, kind: str) -> None:
    folder = with_code(saved(kind, "none", tmp_path / "model"), marker)
    with pytest.raises(UserError):
        Predictor(folder, "cpu")
    change(folder / "config.json", auto_map=None)  # the tokenizer's alone is left
    with pytest.raises(UserError):
        Predictor(folder, "cpu")
    assert not marker.exists()


def test_a_pickled_base_is_read_without_running_it(tmp_path: Path, marker: Path) -> None:
    folder = str(with_pickle(copied(tiny.bert(), tmp_path / "a"), "pytorch_model.bin", marker))
    with pytest.raises(UserError, match="a pickle that is damaged or holds more than numbers"):
        Encoder(name=folder, tokenizer=folder, **ENCODER).build(("Bad", "Good"), None)
    folder = str(with_pickle(copied(tiny.mamba(), tmp_path / "b"), "pytorch_model.bin", marker))
    with pytest.raises(UserError, match=r"no model\.safetensors"):
        read_weights(folder, None)
    assert not marker.exists()


@pytest.mark.parametrize(
    ("kind", "adapter", "weights"),
    [
        ("bert", "none", "pytorch_model.bin"),
        ("pooled", "none", "pytorch_model.bin"),
        ("bert", "lora", "adapter_model.bin"),
    ],
)
def test_a_trained_model_is_no_pickle(
    tmp_path: Path, marker: Path, kind: str, adapter: str, weights: str
) -> None:
    """Neither an attack nor the very weights: nothing is unpickled."""
    honest = with_honest_pickle(saved(kind, adapter, tmp_path / "honest"), weights)
    attack = with_pickle(saved(kind, adapter, tmp_path / "attack"), weights, marker)
    for folder in (honest, attack):
        with pytest.raises(UserError, match="safetensors"):
            load_network(folder)
    assert not marker.exists()


def test_nothing_of_the_package_reads_pickles_or_trusts_code() -> None:
    risky = ("pickle.load", "joblib.load", "read_pickle", "torch.load(", "allow_pickle=True",
             "trust_remote_code=True", "weights_only=False", "yaml.load(", "shell=True",
             "os.system", "eval(\"", "exec(\"", "load_dataset(")  # fmt: skip
    for file in (ROOT / "kinopoisk_ft").rglob("*.py"):
        text = file.read_text(encoding="utf-8")
        assert not [word for word in risky if word in text], file
        for call in ("np.load(", "AutoConfig.from_pretrained(", "AutoTokenizer.from_pretrained("):
            for tail in text.split(call)[1:]:
                said = "allow_pickle=False" if call == "np.load(" else "trust_remote_code=False"
                assert said in tail[:120], f"{file}: {call}"


def test_an_adapter_imports_no_module(tmp_path: Path, marker: Path) -> None:
    folder = saved("bert", "lora", tmp_path / "model")
    load_network(folder)
    change(folder / "adapter_config.json", megatron_config={"a": 1}, megatron_core="evil_module")
    with pytest.raises(UserError, match="wants to import the module 'evil_module'"):
        load_network(folder)
    assert not marker.exists()


def test_a_card_is_what_it_says(tmp_path: Path) -> None:
    folder = saved("bert", "none", tmp_path / "model")
    for wrong in ({"max_length": "32"}, {"class_names": "Bad"}, {"kind": "pickle"}, {"more": 1}):
        good = (folder / CARD).read_text("utf-8")
        change(folder / CARD, **wrong)
        with pytest.raises(UserError, match=f"{CARD} cannot be read"):
            read_card(folder)
        (folder / CARD).write_text(good, "utf-8")
    (folder / CARD).write_text("[" * 100_000, "utf-8")
    with pytest.raises(UserError, match="cannot be read"):
        read_card(folder)


def test_a_damaged_model_is_told(tmp_path: Path) -> None:
    for kind, file in (("pooled", "head.safetensors"), ("mamba", "model.safetensors")):
        folder = saved(kind, "none", tmp_path / kind)
        (folder / file).write_bytes(b"\x08" * 100)
        with pytest.raises(UserError):
            load_network(folder)
        (folder / file).unlink()
        with pytest.raises(UserError):
            load_network(folder)


@pytest.mark.parametrize(
    ("name", "inside"),
    [
        ("model-00001-of-00002.safetensors", True), ("sub/model.safetensors", True),
        ("../x", False), ("a/../../x", False), ("/etc/passwd", False), ("C:\\x", False),
        ("..\\x", False), ("\\\\host\\share", False), ("", False), ("a\0b", False),
    ],
)  # fmt: skip
def test_names_that_stay_inside(name: str, inside: bool) -> None:
    assert is_inside(name) == inside


def test_an_index_of_weights_stays_in_its_folder(tmp_path: Path) -> None:
    copied(tiny.mamba(), tmp_path / "elsewhere")
    for make, recipe in ((tiny.bert, "bert"), (tiny.mamba, "mamba")):
        folder = copied(make(), tmp_path / recipe)
        index = {"weight_map": {"a": "../elsewhere/model.safetensors"}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        with pytest.raises(UserError, match="names a file outside the folder"):
            Encoder(name=str(folder), tokenizer=str(folder), **ENCODER)
    with pytest.raises(UserError, match="names a file outside the folder"):
        read_weights(str(folder), None)


def test_files_that_lead_out_of_a_model_folder(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("[PAD]\n[UNK]\npassword\n")
    folder = copied(tiny.bert(), tmp_path / "base")
    (folder / "vocab.txt").symlink_to(secret)
    with pytest.raises(UserError, match=r"'vocab\.txt' is a link that leads out"):
        load_tokenizer(str(folder))
    trained = saved("bert", "none", tmp_path / "model")
    (trained / "tokenizer.json").unlink()
    (trained / "tokenizer.json").symlink_to(secret)
    with pytest.raises(UserError, match="leads out"):
        Predictor(trained, "cpu")


def test_links_that_are_right_are_followed(tmp_path: Path) -> None:
    """Snapshots in the hub's cache are links; weights may be on another disk."""
    repo = tmp_path / "models--some--bert"
    blobs, snapshot = repo / "blobs", repo / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    copied(tiny.bert(), blobs)
    for file in blobs.iterdir():
        (snapshot / file.name).symlink_to(os.path.relpath(file, snapshot))
    assert load_tokenizer(str(snapshot)).pad_token == "[PAD]"
    folder = copied(tiny.bert(), tmp_path / "base")
    weights = folder / "model.safetensors"
    weights.rename(tmp_path / "big.safetensors")
    weights.symlink_to(tmp_path / "big.safetensors")
    Encoder(name=str(folder), tokenizer=str(folder), **ENCODER).build(("Bad", "Good"), None)


def hostile_targets(marker: Path) -> list[dict[str, Any]]:
    """Return nodes that would make the marker, were they built."""
    path = str(marker)
    return [
        {"_target_": "pathlib.Path.touch", "self": {"_target_": "pathlib.Path", "_args_": [path]}},
        {"_target_": "os.mkdir", "path": path},
        {"_target_": "kinopoisk_ft.environment.subprocess.run", "args": ["touch", path]},
        {"_target_": "kinopoisk_ft.hub.pickle.loads", "_args_": [b""]},
        {"_target_": "kinopoisk_ft.identity.get_object", "path": "os.system"},
        {"_target_": "torch.hub.load", "repo_or_dir": path},
        {"_target_": "torch.optim.optimizer.torch.load", "f": path},
        {"_target_": "peft.PeftModel.from_pretrained", "model": None, "model_id": path},
        {"_target_": "shutil.copyfile", "src": "/dev/null", "dst": path},
        {"_target_": "pandas.read_pickle", "filepath_or_buffer": path},
        {"_target_": "my_module.os.mkdir", "path": path},
        {"_target_": ["os.mkdir"]},
    ]


def test_targets_of_others_are_not_run(
    tmp_path: Path, marker: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever in a config they stand, and through whatever module they are named."""
    (tmp_path / "my_module.py").write_text("import os\n")
    monkeypatch.syspath_prepend(tmp_path)
    cfg = plain(compose_config(["model=bert_scratch", "adapter=lora"]))
    assert check(cfg) == []
    for node in hostile_targets(marker):
        for place in ("adapter", "adapter.config.target_modules", "trainer.optimizer", "data.name"):
            changed = json.loads(json.dumps(cfg, default=str))
            group, *rest = place.split(".")
            inner = changed[group]
            for key in rest[:-1]:
                inner = inner[key]
            if rest:
                inner[rest[-1]] = [node] if rest[-1] == "target_modules" else node
            else:
                changed[group] = node
            errors = check(changed)
            assert errors, node
            assert any("_target_" in error for error in errors)
    assert not marker.exists()


def test_trusted_packages_are_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = plain(compose_config(["model=bert_scratch"]))
    cfg["adapter"] = {"_target_": "fractions.Fraction", "numerator": 1}
    assert "KINOPOISK_FT_TARGETS=fractions" in check(cfg)[0]
    monkeypatch.setenv("KINOPOISK_FT_TARGETS", "another, fractions")
    assert check(cfg) == []


def test_what_a_saved_run_says_of_itself_is_not_run(
    tmp_path: Path, marker: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither its config, nor what is known of it unfinished, nor what is beside its model."""
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "run"
    saved("bert", "none", out / "model")
    with_code_only(out / "model", marker)
    config = {"seed": 1, "model": {"_target_": "os.mkdir", "path": str(marker)}}
    (out / "config.yaml").write_text(json.dumps(config))
    (out / "model" / "config.yaml").write_text(json.dumps(config))
    (out / "unfinished.json").write_text(json.dumps({"run_id": "../../x", "config": config}))
    assert len(Predictor(model_folder(str(out)), "cpu").predict([tiny.GOOD])) == 1
    arguments = ["model=tfidf", "data=demo", "data.reviews=200", "tracking=none"]
    assert main([*arguments, f"output_dir={out}"]) == 0
    assert not marker.exists()


def with_code_only(folder: Path, marker: Path) -> None:
    for name in ("conftest.py", "sitecustomize.py", "modeling_bert.py", "__init__.py"):
        (folder / name).write_text(f"open({str(marker)!r}, 'w')")


@pytest.fixture
def store(tmp_path: Path) -> tuple[str, MlflowClient, str]:
    """A store on disk: its address, a client and the id of a run."""
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    client = MlflowClient(uri)
    home = client.create_experiment("runs", (tmp_path / "artifacts").as_uri())
    return uri, client, client.create_run(home).info.run_id


def test_predict_runs_nothing_of_a_hostile_run(
    tmp_path: Path, marker: Path, store: tuple[str, MlflowClient, str]
) -> None:
    """MLflow's own loader would run the code and unpickle the model that a run brings."""
    uri, _, run_id = store
    (tmp_path / "code.py").write_text(
        f"open({str(marker)!r}, 'w')\nimport mlflow\n"
        "class Model(mlflow.pyfunc.PythonModel):\n"
        "    def predict(self, context, model_input, params=None):\n        return model_input\n"
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
    assert marker.exists()  # logging runs it: it is the user's own there
    marker.unlink()
    folder = model_folder(run_id, uri)
    (folder.parents[1] / "python_model.pkl").write_bytes(pickle.dumps(Touch(marker)))
    assert len(Predictor(folder, "cpu").predict([tiny.GOOD])) == 1
    assert not marker.exists()


def test_a_run_without_a_model_of_ours_is_told(store: tuple[str, MlflowClient, str]) -> None:
    uri, client, run_id = store
    for text in ("[]", "{}", '{"model_dir": 5}', "{", "[" * 100_000,
                 '{"model_dir": "../../etc"}', '{"model_dir": "a\\u0000b"}'):  # fmt: skip
        client.log_text(run_id, text, "result.json")
        with pytest.raises(UserError):
            model_folder(run_id, uri)
    for name in ("' or 1=1 --", "../../etc/passwd", "%2e%2e", "a" * 5000, "a\0b"):
        with pytest.raises(UserError):
            model_folder(name, uri)


class Listing(BaseHTTPRequestHandler):
    """A store whose list of artifacts leads out of the folder that they are put in."""

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
        """Keep silent."""


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


def checkpoint(folder: Path, plain: dict[str, Any], **manifest: Any) -> Snapshots:
    """Return a folder with one checkpoint whose manifest says something else."""
    snapshots = Snapshots(folder)
    snapshots.write({"weights.a": torch.zeros(1)}, plain, {})
    change(folder / "checkpoint-000001" / "manifest.json", **manifest)
    return snapshots


def test_a_checkpoint_names_files_of_its_own_folder(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "best.safetensors").write_bytes(b"x")
    outside = {"../best.safetensors": sha256(tmp_path / "best.safetensors")}
    assert checkpoint(tmp_path / "a", {"step": 1}).newest() is not None
    assert checkpoint(tmp_path / "b", {"step": 1}, beside=outside).newest() is None
    assert "names what is not in its folder: ../best.safetensors" in caplog.text
    best = BestWeights(tmp_path / "c")
    best.load_state_dict({"file": "../best.safetensors", "digest": ""})
    assert best.file == tmp_path / "c" / "best.safetensors"


def test_odd_checkpoints_are_not_used(tmp_path: Path) -> None:
    assert checkpoint(tmp_path / "a", {}).newest() is None  # it says nothing
    for text in ("[" * 100_000, "[]", '{"format": 1, "files": 5, "beside": {}}', "\0"):
        snapshots = checkpoint(tmp_path / "b", {"step": 1})
        (tmp_path / "b" / "checkpoint-000001" / "manifest.json").write_text(text)
        assert snapshots.newest() is None
    (tmp_path / "b" / "checkpoint-mine").mkdir()
    snapshots.write({}, {"step": 1}, {})
    assert [folder.name for folder in snapshots.folders()] == ["checkpoint-000001"]


def test_odd_notes_of_an_unfinished_run_are_told(tmp_path: Path) -> None:
    for text in ("[" * 100_000, "[]", '{"run_id": "a", "config": {"seed": "b"}}',
                 '{"run_id": "a", "config": 5}', "\0"):  # fmt: skip
        (tmp_path / "unfinished.json").write_text(text)
        with pytest.raises(UserError, match="cannot be read"):
            kept_seed(tmp_path, "auto")


def test_the_store_is_shown_to_this_machine_alone() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    servers = [line for line in makefile.splitlines() if "mlflow ui" in line]
    assert servers
    assert all("--host 127.0.0.1" in line for line in servers)


def test_a_data_set_brings_no_code(
    tmp_path: Path, marker: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its script and its README, which could name one, are neither fetched nor run."""
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
