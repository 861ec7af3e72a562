"""Test config groups: those in --help, and a user's own from a folder, code or a base."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import BERT, run
from command_line import _here as _here
from command_line import place as place

from kinopoisk_ft.cli import main


def test_help_names_groups_and_options() -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "kinopoisk_ft", "--help"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    for name in ("model", "mamba_scratch", "adapter", "rslora", "study_bert_full", "sweep"):
        assert name in done.stdout
    assert not re.search(r"\b(torch|mlflow|hydra)\b", done.stderr)


def test_own_groups_from_a_folder(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = place / "own" / "adapter"
    folder.mkdir(parents=True)
    (folder / "vera.yaml").write_text(
        "# VeRA: shared random matrices, trained scales.\n"
        "_target_: kinopoisk_ft.adapters.peft.Peft\nlr: 1.0e-2\nconfig:\n"
        "  _target_: peft.VeraConfig\n  _convert_: all\n  r: 4\n"
        "  target_modules: ${model.targets.lora}\n"
    )
    assert main(["--config-dir", "own", "--help"]) == 0
    assert "VeRA: shared random matrices" in capsys.readouterr().out
    args = [*BERT, "adapter=vera", "tracking=none", "output_dir=vera", "--config-dir", "own"]
    assert run(*args) == 0
    assert (place / "vera" / "model" / "adapter_model.safetensors").is_file()


def test_own_code_needs_no_change_in_the_package(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (place / "mine.py").write_text(
        "from kinopoisk_ft.adapters.plain import Head\n"
        "class Mine(Head):\n    pass\n"
        "def constant(step, warmup, total):\n    return 1.0\n"
    )
    files = {
        "adapter/mine.yaml": "# The head alone, again.\n_target_: mine.Mine\nlr: 1.0e-2\n",
        "trainer/schedule/mine.yaml": "# Flat.\n_target_: mine.constant\n_partial_: true\n",
    }
    for name, text in files.items():
        (place / "ours" / name).parent.mkdir(parents=True, exist_ok=True)
        (place / "ours" / name).write_text(text)
    monkeypatch.syspath_prepend(place)
    args = [*BERT, "adapter=mine", "trainer/schedule=mine", "tracking=none", "output_dir=mine"]
    assert run(*args, "--config-dir", "ours") == 0


@pytest.mark.slow
def test_pretrained_base_is_a_model(place: Path) -> None:
    pretrain = ["task=pretrain", "task.save_to=base", "trainer.best_metric=loss", "tracking=none"]
    assert run(*BERT, *pretrain, "output_dir=pre") == 0
    assert run("model=encoder", "model.name=base", "model.pooling=mean", "adapter=freeze",
               "adapter.layers=1", "tracking=none", "output_dir=tuned") == 0  # fmt: skip
    assert (place / "tuned" / "model" / "head.safetensors").is_file()
