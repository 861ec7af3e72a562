"""Test the MLflow model of a run: it contains its code, and its requirements can be installed."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import tiny
from mlflow import MlflowClient
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version
from places import ROOT
from saved_networks import save
from tracked import hurry, is_sent, wait_for

from kinopoisk_ft.serving.predictor import Predictor
from kinopoisk_ft.tasks.record import PYFUNC
from kinopoisk_ft.tracking.logged_model import SERVING, serving_requirements
from kinopoisk_ft.tracking.mlflow import MlflowTracker

# Loads the model in a process that cannot import the package, like a server.
SERVE = """
import json, os, sys
root, folder, texts = json.load(sys.stdin)
sys.path[:] = [place for place in sys.path if os.path.realpath(place or ".") != root]
import mlflow
import pandas as pd
found = mlflow.pyfunc.load_model(folder).predict(pd.DataFrame({"text": texts}))
code = sys.modules["kinopoisk_ft"].__file__
print("RESULT" + json.dumps([found.to_dict("list"), code]))
"""

# Lists the packages that the package itself imports when it answers.
IMPORTS = """
import ast, json, pathlib, sys
import kinopoisk_ft.models.mamba_recipe, kinopoisk_ft.models.saving, kinopoisk_ft.models.tfidf
import kinopoisk_ft.serving.predictor, kinopoisk_ft.serving.pyfunc
names = set()
for name, module in [*sys.modules.items()]:
    if name.partition(".")[0] == "kinopoisk_ft" and getattr(module, "__file__", None):
        for node in ast.walk(ast.parse(pathlib.Path(module.__file__).read_text("utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names.add(node.module)
print("RESULT" + json.dumps(sorted({name.partition(".")[0] for name in names})))
"""


def test_each_requirement_is_a_public_version(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"torch": "2.13.0+cpu", "numba": "0.61.0"}
    monkeypatch.setattr(
        "kinopoisk_ft.tracking.logged_model.version", lambda name: versions.get(name, "1.2rc1")
    )
    requirements = [Requirement(line) for line in serving_requirements()]
    assert [one.name for one in requirements] == list(SERVING)
    for one in requirements:
        (pin,) = one.specifier
        assert one.url is None
        assert pin.operator == "=="
        assert Version(pin.version).local is None
    assert "torch==2.13.0" in serving_requirements()


@pytest.mark.slow
def test_all_that_serving_imports_is_required() -> None:
    done = subprocess.run(
        [sys.executable, "-c", IMPORTS], capture_output=True, text=True, check=True
    )
    imported = json.loads(done.stdout.split("RESULT")[1])
    distributions = packages_distributions()
    needed = {
        canonicalize_name(distributions[name][0]) for name in imported if name in distributions
    }
    # Exported models, which need onnxruntime, are not logged to MLflow.
    needed -= {"kinopoisk-ft", "llvmlite", "onnxruntime"}
    # Parts of MLflow are separate distributions.
    assert needed | {"mlflow"} == {*SERVING, "mlflow-tracing"}


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "adapter"), [("bert_scratch", "lora"), ("mamba", "none")])
def test_the_model_predicts_without_the_installed_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, adapter: str
) -> None:
    hurry(monkeypatch)
    save(kind, adapter, tmp_path / "run" / "model")
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    artifacts = (tmp_path / "artifacts").as_uri()
    tracker = MlflowTracker(uri=uri, artifacts=artifacts, experiment="x", log_model=True)
    run_id = tracker.start("one", {}, {}, folder=tmp_path / "run")
    tracker.model(tmp_path / "run" / "model", PYFUNC, ("Bad", "Good"))
    tracker.finish("FINISHED")
    wait_for(lambda: is_sent(tracker))
    client = MlflowClient(uri)
    (output,) = client.get_run(run_id).outputs.model_outputs
    folder = Path(
        client.get_logged_model(output.model_id).artifact_location.removeprefix("file://")
    )
    for line in (folder / "requirements.txt").read_text().splitlines():
        requirement = Requirement(line)
        assert requirement.url is None
        assert "+" not in line
    done = subprocess.run(
        [sys.executable, "-c", SERVE], input=json.dumps([str(ROOT), str(folder), [tiny.GOOD]]),
        capture_output=True, text=True, check=True, cwd=tmp_path,
    )  # fmt: skip
    found, code = json.loads(done.stdout.split("RESULT")[1])
    assert Path(code).is_relative_to(folder / "code")
    expected = Predictor(tmp_path / "run" / "model", "cpu").predict([tiny.GOOD])
    assert found["label"] == expected["label"].tolist()
    assert found["p_Good"] == pytest.approx(expected["p_Good"].tolist(), abs=1e-6)
