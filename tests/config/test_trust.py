"""Test that configs from other people, or from a saved run, cannot run arbitrary code.

Each attack would create a marker file if it succeeded.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
from composing import compose_config, plain
from hostile import saved, with_code_only
from hydra.utils import get_object
from places import ROOT

from kinopoisk_ft.cli import main
from kinopoisk_ft.config.trust import (
    MOVED,
    freeze_trust,
    get_trusted_packages,
    rename_moved_targets,
)
from kinopoisk_ft.config.validate import find_errors
from kinopoisk_ft.serving.locate import find_model_folder
from kinopoisk_ft.serving.predictor import Predictor

pytestmark = pytest.mark.usefixtures("nobody_answers")


def hostile_targets(marker: Path) -> list[dict[str, Any]]:
    """Return config nodes that would create the marker if they were instantiated."""
    path = str(marker)
    return [
        {"_target_": "pathlib.Path.touch", "self": {"_target_": "pathlib.Path", "_args_": [path]}},
        {"_target_": "os.mkdir", "path": path},
        {"_target_": "kinopoisk_ft.provenance.subprocess.run", "args": ["touch", path]},
        {"_target_": "kinopoisk_ft.hub_access.pickle.loads", "_args_": [b""]},
        {"_target_": "kinopoisk_ft.provenance.get_object", "path": "os.system"},
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
    """This holds anywhere in a config, and for any module that the name goes through."""
    (tmp_path / "my_module.py").write_text("import os\n")
    monkeypatch.syspath_prepend(tmp_path)
    cfg = plain(compose_config(["model=bert_scratch", "adapter=lora"]))
    assert find_errors(cfg) == []
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
            errors = find_errors(changed)
            assert errors, node
            assert any("_target_" in error for error in errors)
    assert not marker.exists()


def test_trusted_packages_are_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = plain(compose_config(["model=bert_scratch"]))
    cfg["adapter"] = {"_target_": "fractions.Fraction", "numerator": 1}
    assert "KINOPOISK_FT_TARGETS=fractions" in find_errors(cfg)[0]
    monkeypatch.setenv("KINOPOISK_FT_TARGETS", "another, fractions")
    assert find_errors(cfg) == []


def test_targets_in_the_files_of_a_saved_run_are_not_run(
    tmp_path: Path, marker: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This covers its config, its record as an unfinished run, and the files next to its model."""
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "run"
    saved("bert", "none", out / "model")
    with_code_only(out / "model", marker)
    config = {"seed": 1, "model": {"_target_": "os.mkdir", "path": str(marker)}}
    (out / "config.yaml").write_text(json.dumps(config))
    (out / "model" / "config.yaml").write_text(json.dumps(config))
    (out / "unfinished.json").write_text(json.dumps({"run_id": "../../x", "config": config}))
    assert len(Predictor(find_model_folder(str(out)), "cpu").predict([tiny.GOOD])) == 1
    arguments = ["model=tfidf", "data=demo", "data.reviews=200", "tracking=none"]
    assert main([*arguments, f"output_dir={out}"]) == 0
    assert not marker.exists()


def test_trusted_packages_are_read_once_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    with freeze_trust():
        monkeypatch.setenv("KINOPOISK_FT_TARGETS", "fractions")
        assert get_trusted_packages() == ()
    assert get_trusted_packages() == ("fractions",)


def test_a_job_cannot_change_the_trusted_packages(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """This holds even if the config lets Hydra set environment variables for the job."""
    monkeypatch.chdir(tmp_path)
    hostile = ["++adapter._target_=fractions.Fraction"]
    with pytest.raises(SystemExit):
        main(
            [
                "+hydra.job.env_set.KINOPOISK_FT_TARGETS=fractions",
                "model=tfidf",
                "data=demo",
                *hostile,
            ]
        )
    assert "neither this project's nor your own code" in capsys.readouterr().err


@pytest.mark.parametrize("old", MOVED)
def test_moved_targets_still_resolve(old: str) -> None:
    node = rename_moved_targets({"model": [{"_target_": old, "other": 1}]})
    assert callable(get_object(node["model"][0]["_target_"]))
    assert node["model"][0]["other"] == 1


PUBLIC = [
    "kinopoisk_ft.adapters.peft.Peft",
    "kinopoisk_ft.data.recipe.DataRecipe",
    "kinopoisk_ft.data.kinopoisk.Kinopoisk",
    "kinopoisk_ft.training.loop.Trainer",
    "kinopoisk_ft.tracking.mlflow.MlflowTracker",
    "kinopoisk_ft.models.encoder.Encoder",
]


@pytest.mark.parametrize("name", PUBLIC)
def test_public_targets_that_never_moved(name: str) -> None:
    assert callable(get_object(MOVED.get(name, name)))


def test_a_config_with_moved_targets_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A user's own yaml file may contain the names of an earlier version."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own" / "model").mkdir(parents=True)
    text = (ROOT / "conf/model/tfidf.yaml").read_text("utf-8")
    text = text.replace("kinopoisk_ft.models.tfidf.Tfidf", "kinopoisk_ft.models.baseline.Tfidf")
    assert "baseline" in text
    (tmp_path / "own" / "model" / "old.yaml").write_text(text, "utf-8")
    args = ["--config-dir", "own", "model=old", "data=demo", "data.reviews=200", "tracking=none",
            "task._target_=kinopoisk_ft.run.finetune", "output_dir=out"]  # fmt: skip
    assert main(args) == 0
    assert "f1_weighted" in capsys.readouterr().out
