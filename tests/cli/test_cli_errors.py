"""Test that mistakes and failed runs give one message each, and that failures are recorded."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import parsed_configs
import pytest
from command_line import BERT, DATA, run
from command_line import _here as _here
from command_line import place as place
from mlflow import MlflowClient
from omegaconf import OmegaConf
from quick import quick


@pytest.mark.slow
def test_failed_job_is_recorded_and_the_others_run(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = run("-m", "model=tfidf", "adapter=lora,none", "tracking.experiment=half",
               "output_dir=half")  # fmt: skip
    assert code == 1
    assert "no layers to adapt" in capsys.readouterr().err
    client = MlflowClient(f"sqlite:///{place / 'mlflow.db'}")
    runs = client.search_runs([client.get_experiment_by_name("half").experiment_id])
    by_status = {r.info.status: r for r in runs if r.data.tags["kinopoisk_ft.kind"] == "train"}
    assert set(by_status) == {"FAILED", "FINISHED"}
    failed = by_status["FAILED"].info.run_id
    trace = Path(client.download_artifacts(failed, "traceback.txt")).read_text()
    assert "UserError" in trace


def test_a_failed_run_is_closed_even_if_its_traceback_cannot_be_written(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Path.write_text

    def full(file: Path, *args: Any, **kwargs: Any) -> int:
        if file.name == "traceback.txt":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(file, *args, **kwargs)

    def fail(*_: object) -> None:
        raise RuntimeError("no words")

    monkeypatch.setattr(Path, "write_text", full)
    monkeypatch.setattr("kinopoisk_ft.tasks.finetune.fit_baseline", fail)
    assert run("model=tfidf", "tracking.experiment=full", "output_dir=full") == 1
    client = MlflowClient(f"sqlite:///{place / 'mlflow.db'}")
    (failed,) = client.search_runs([client.get_experiment_by_name("full").experiment_id])
    assert (failed.info.status, failed.data.tags["error"]) == ("FAILED", "no words")
    log = (place / "full" / "run.log").read_text()
    assert "the failure could not be recorded completely" in log


MISTAKES = [
    (["trainer.max_epoch=3"], "did you mean 'trainer.epochs'?"),
    (["model=brt"], "did you mean 'bert'?"),
    (["modle=bert"], "did you mean 'model'?"),
    (["model=encoder", "model.name=./nowhere"], "the folder './nowhere' does not exist"),
    ([*BERT, "data.max_length=65"], "the model has 64 positions"),
    ([*BERT, "adapter=freeze"], "cannot freeze 10 layers: the model has 2"),
    ([*BERT, "adapter=lora", "adapter.config.target_modules=[qeury]"], "matches no module"),
    (["model=tfidf", "adapter=head"], "no layers to adapt"),
    (["model=tfidf", "data.path=nowhere.csv"], "nowhere.csv"),
    (["model=tfidf", "data.text_column=txt"], "did you mean 'text'?"),
    (["model=tfidf", "data.limit=4"], "data.limit"),
    (["model=tfidf", "data.split=flim"], "did you mean 'film'?"),
    (["model=tfidf", "data.splt=film"], "did you mean 'data.split'?"),
    (["model=tfidf", "data.split=film"], "needs a column 'film'"),
    (["model=tfidf", "data.folds=5"], "from 0 to 4"),
    (["model=tfidf", "trainer.class_weights=balanced"], "model.class_weight"),
    ([*BERT, "data.truncation=haed"], "did you mean 'head'?"),
    ([*BERT, "data.max_length=2"], "leaves no room for the text"),
    ([*BERT, "trainer.device=cuda"], "not available on this machine"),
    (["model=bert"], "model.name=<folder>"),
    (["model=tfidf", "data=kinopoisk", "data.path=null"], "data=demo"),
    (["model=tfidf", "tracking.uri=sqlite:////proc/no/mlflow.db"], "cannot be opened"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("args", "told"), quick(MISTAKES, 8), ids=lambda v: v if isinstance(v, str) else ""
)
def test_mistakes_end_with_one_message(
    args: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    tracking = [] if any("tracking" in arg for arg in args) else ["tracking=none"]
    data = [] if "data=kinopoisk" in args else DATA
    assert run(*args, *tracking, "output_dir=mistake", data=data) in (1, 2)
    shown = capsys.readouterr()
    assert told in shown.err
    assert "Traceback" not in shown.err + shown.out


def test_typo_in_an_experiment_file(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = place / "typo" / "experiment"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text("# @package _global_\n# Mine.\ntrainer:\n  epoch: 1\n")
    assert run("model=tfidf", "experiment=mine", "tracking=none", "--config-dir", "typo") == 1
    error = capsys.readouterr().err
    assert "unknown option 'trainer.epoch': did you mean 'epochs'?" in error
    assert "experiment 'mine'" in error


BROKEN = {
    b"trainer: {a\n": "malformed YAML: expected ',' or '}', but got '<stream end>'",
    b"\ttrainer: 1\n": "malformed YAML: found character '\\t' that cannot start any token",
    b"# \xec\xeb\xe9\n": "a config file cannot be read: 'utf-8' codec",
    b"a: \x00\n": "a config file cannot be read: unacceptable character",
    b"1e999\n": "a config file cannot be read: Invalid loaded object type: float",
    b"[" * 3000: "a config file cannot be read: its values are nested too deeply",
}


@pytest.mark.parametrize("content", BROKEN)
def test_a_config_file_that_is_no_yaml(
    content: bytes,
    place: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The tests' own function for parsing hides the name of the file.
    monkeypatch.setattr(OmegaConf, "load", staticmethod(parsed_configs.load))
    folder = place / "broken" / "experiment"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "mine.yaml").write_bytes(content)
    store = "tracking.uri=sqlite:///broken.db"
    for chosen in (["experiment=mine"], ["-m", "experiment=mine,demo"]):
        assert run("model=tfidf", *chosen, "--config-dir", "broken", store) == 2
        error = capsys.readouterr().err
        assert BROKEN[content] in error
        # Hydra reads the start of a file itself, and does not name the file in an error.
        named = "broken" if "codec" in error else "mine.yaml"
        assert named in error.partition("where: ")[2]
        assert "to do: " in error
        assert not (place / "broken.db").exists()
    # The help lists such a file, too.
    assert run("--config-dir", "broken", "--help") == 0
