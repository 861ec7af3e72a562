"""Test that runs work with an unwritable home folder, and warn once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kinopoisk_ft import files
from kinopoisk_ft.files import CACHE_VARIABLE, LIBRARY_VARIABLES, get_cache_dir, prepare_caches

VARIABLES = (CACHE_VARIABLE, *LIBRARY_VARIABLES)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Set up a writable home folder, without variables that move caches."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in (*VARIABLES, "XDG_CACHE_HOME"):
        # This restores the variables after the test.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setattr(files, "_temporary", None)
    return tmp_path


def moved() -> set[str]:
    return {name for name in VARIABLES if os.environ.get(name)}


def test_a_home_that_can_be_written_is_used(home: Path, capfd: pytest.CaptureFixture[str]) -> None:
    prepare_caches()
    assert moved() == set()
    assert get_cache_dir() == home / ".cache" / "kinopoisk_ft"
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("kind", ["a file", "no such folder", "a file as XDG_CACHE_HOME"])
def test_an_unusable_home_is_reported_once(
    kind: str, home: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (home / "file").touch()
    name = "XDG_CACHE_HOME" if "XDG" in kind else "HOME"
    monkeypatch.setenv(name, "/proc/nowhere" if "no such" in kind else str(home / "file"))
    prepare_caches()
    assert moved() == (set(LIBRARY_VARIABLES) if "XDG" in kind else set(VARIABLES))
    get_cache_dir().mkdir(parents=True, exist_ok=True)
    assert "cannot be written" in capfd.readouterr().err
    # A worker process of a sweep inherits the variables and calls this again.
    prepare_caches()
    assert capfd.readouterr().err == ""


def test_a_user_without_a_home_has_temporary_caches(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", no_home)
    prepare_caches()
    assert moved() == set(VARIABLES)


def test_a_named_cache_needs_no_home(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(home / "mine"))
    monkeypatch.setattr(Path, "home", lambda: pytest.fail("asked for a home folder"))
    assert get_cache_dir() == home / "mine"


def test_a_library_keeps_a_readable_cache(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Models on a read-only disk are found there."""
    (home / ".cache" / "huggingface").mkdir(parents=True)
    refusal = files._find_write_error
    monkeypatch.setattr(
        files, "_find_write_error", lambda f: "read only" if f == home / ".cache" else refusal(f)
    )
    prepare_caches()
    assert moved() == set(LIBRARY_VARIABLES) - {"HF_HOME"}


@pytest.mark.slow
@pytest.mark.parametrize("place", ["/proc/nowhere", "file"])
def test_a_run_needs_no_home(place: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    hidden = {"HOME", "XDG_CACHE_HOME", *VARIABLES, "NUMBA_CACHE_DIR"}
    kept = {name: value for name, value in os.environ.items() if name not in hidden}
    done = subprocess.run(
        [sys.executable, "-m", "kinopoisk_ft", "model=bert_scratch", "model.hidden_size=16",
         "model.num_layers=2", "model.max_positions=64", "model.vocab_size=300", "data=demo",
         "data.reviews=120", "data.max_length=32", "trainer.max_steps=3", "trainer.precision=fp32",
         "trainer.device=cpu", "adapter=freeze", "adapter.layers=1", "trainer.prefix_cache=fp32",
         "output_dir=run"],
        cwd=tmp_path, capture_output=True, text=True,
        env={**kept, "HOME": str(tmp_path / place), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "run" / "result.json").read_text())["accuracy"] is not None
    assert done.stderr.count("cannot be written") == 1
    assert "Matplotlib" not in done.stdout + done.stderr
