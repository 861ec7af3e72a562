"""Test the commands in the README: targets of make, the wheel, and the demo."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from places import ROOT

TARGETS = {
    "setup", "demo", "test", "test-all", "lint", "types", "bench", "ui", "report", "notebooks",
    "clean",
}  # fmt: skip


def make(*arguments: str) -> str:
    """Return the output of make."""
    done = subprocess.run(
        ["make", "-C", str(ROOT), "--no-print-directory", *arguments],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return done.stdout


def test_help_lists_every_target() -> None:
    listed = {line.split()[0] for line in make("help").splitlines()}
    assert listed >= TARGETS
    declared = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert declared
    assert listed == set(declared.group(1).split())


def test_demo_and_ui_run_what_the_readme_says() -> None:
    demo = make("--dry-run", "demo")
    assert demo.index("sweep=demo_bases") < demo.index("sweep=demo output_dir")
    assert "kinopoisk_ft.report --experiment demo" in demo
    assert "kinopoisk-ft ui --uri sqlite:///" in make("--dry-run", "ui")


def test_constraints_pin_every_package_exactly() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert "torch==2.13.0" in pins
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[^=\s]+", pin) for pin in pins)
    names = {re.sub(r"[-_.]+", "-", pin.split("==")[0]).lower() for pin in pins}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = project["dependencies"] + project["optional-dependencies"]["dev"]
    assert {re.split(r"[<>=]", entry)[0].lower() for entry in wanted} <= names


def test_readme_names_the_two_commands() -> None:
    readme = (ROOT / "README.md").read_text()
    assert "make demo" in readme
    assert "make test" in readme


FAST = """
import shutil, torch, kinopoisk_ft
from kinopoisk_ft.ops.backends import choose_backend
from kinopoisk_ft.ops.scan.op import BACKENDS, selective_scan
assert not any(shutil.which(name) for name in ("cc", "gcc", "g++", "c++", "clang"))
one = torch.rand(1, 40, 16)
states = torch.rand(1, 40, 4)
out = selective_scan(one, one, -torch.rand(16, 4), states, states, torch.rand(16), one)
assert out.isfinite().all()
print(kinopoisk_ft.__file__)
print(choose_backend("selective_scan", "auto", BACKENDS, out.device, out.dtype))
"""


@pytest.mark.slow
def test_wheel_has_the_groups_and_a_fast_scan_without_a_compiler(tmp_path: Path) -> None:
    """The build backend is installed from the package index."""
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--no-deps", "-w", str(tmp_path), str(ROOT)],
        check=True, capture_output=True,
    )  # fmt: skip
    wheel = next(tmp_path.glob("*.whl"))
    inside = set(zipfile.ZipFile(wheel).namelist())
    groups = {file.relative_to(ROOT).as_posix() for file in (ROOT / "conf").rglob("*.yaml")}
    assert groups
    assert {f"kinopoisk_ft/{name}" for name in groups} <= inside
    place = tmp_path / "installed"
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--no-deps", "--target", str(place), str(wheel)],
        check=True, capture_output=True,
    )  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", FAST], cwd=tmp_path, capture_output=True, text=True, check=True,
        env={"PYTHONPATH": str(place), "PATH": str(tmp_path), "HOME": str(tmp_path)},
    )  # fmt: skip
    package, backend = done.stdout.split()
    assert Path(package).is_relative_to(place)
    assert backend == "numba"


@pytest.mark.slow
def test_demo_gives_rows_that_make_sense(tmp_path: Path) -> None:
    env = {**os.environ, "KINOPOISK_FT_CACHE": str(tmp_path / "cache")}
    for arguments in (["sweep=demo_bases", "output_dir=bases"],
                      ["sweep=demo", "output_dir=runs", "result_json=row.json"]):  # fmt: skip
        subprocess.run(
            [sys.executable, "-m", "kinopoisk_ft", *arguments], cwd=tmp_path, env=env, check=True
        )
    rows = [json.loads((tmp_path / f"row.{i}.json").read_text()) for i in range(5)]
    assert all(row["f1_weighted"] > 0.85 for row in rows)
    report = [sys.executable, "-m", "kinopoisk_ft.report", "--experiment", "demo"]
    done = subprocess.run(report, cwd=tmp_path, env=env, check=True, capture_output=True, text=True)
    for name in ("tf-idf", "freeze", "lora", "mamba", "majority"):
        assert name in done.stdout.lower()
    assert (tmp_path / "report" / "comparison.png").stat().st_size > 10_000
