"""Test the architecture: imports between folders, places of files, and their length."""

from __future__ import annotations

import ast
import graphlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import kinopoisk_ft
from kinopoisk_ft.config.groups import get_conf_dir

PACKAGE = Path(kinopoisk_ft.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))

# The ground floor, which everything may import.
GROUND = {"errors", "text", "files", "console", "hub_access"}
# Everything may import this module, too, because it only reads environment variables.
TORCHRUN = "training.distributed.torchrun"
# What each folder and top-level file may import besides the ground floor.
MAY_IMPORT = {
    "ops": set(),
    "statistics": set(),
    # A saved classifier divides long texts into windows, which `data` implements.
    "models": {"config", "data", "ops"},
    "data": set(),
    "adapters": {"models"},
    "training": {"data", "ops", "statistics"},
    # The primary metric of an experiment is the one that ranks the approaches.
    "tracking": {"config", "run_folder", "statistics"},
    "config": {"provenance"},
    "run_folder": {"config"},
    "provenance": set(),
    "prefix_cache": {"data", "models", "provenance", "training", "tracking"},
    "search": {"config", "provenance", "run_folder", "statistics", "training", "tracking"},
    "reporting": {"config", "search", "statistics", "tracking"},
    "serving": {"config", "data", "models", "training", "tracking"},
    "checks": {"ops", "provenance", "training", "tracking"},
    "tasks": {"adapters", "data", "models", "prefix_cache", "provenance", "reporting", "run_folder",
              "statistics", "training", "tracking"},
    "run": {"config", "provenance", "run_folder", "search", "tasks", "training", "tracking"},
    "sweeps": {"adapters", "config", "data", "models", "provenance", "run", "run_folder", "search",
               "statistics", "tasks", "training", "tracking"},
    "commands": {"checks", "data", "models", "reporting", "run_folder", "serving", "statistics",
                 "tracking"},
    "cli": {"commands", "config", "run", "run_folder", "sweeps", "tracking"},
}  # fmt: skip
# Entry points of `python -m kinopoisk_ft` and `python -m kinopoisk_ft.<command>`.
ENTRIES = {"__init__", "__main__", "report", "predict", "sync", "doctor"}


def name_of(file: Path) -> str:
    """Return the dotted name of a module without the name of the package."""
    parts = file.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(file) for file in FILES}


def imported(file: Path) -> set[str]:
    """Return the modules of the package that a file imports, at any depth."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("kinopoisk_ft"):
            module = (node.module or "").partition(".")[2]
            names = {f"{module}.{alias.name}".lstrip(".") for alias in node.names}
            found |= names & MODULES or {module}
            found |= {module} if names - MODULES else set()
    return found - {name_of(file), "", TORCHRUN}


def top(module: str) -> str:
    """Return the folder or top-level file that a module belongs to."""
    return module.partition(".")[0]


def test_everything_at_top_level_is_listed() -> None:
    names = {p.stem for p in PACKAGE.glob("*.py")}
    names |= {p.name for p in PACKAGE.iterdir() if (p / "__init__.py").exists()}
    assert names == GROUND | MAY_IMPORT.keys() | ENTRIES


@pytest.mark.parametrize("name", sorted({*MAY_IMPORT, *GROUND}))
def test_imports_keep_to_the_architecture(name: str) -> None:
    allowed = GROUND | MAY_IMPORT.get(name, set()) | {name}
    for file in (file for file in FILES if top(name_of(file)) == name):
        assert {top(module) for module in imported(file)} <= allowed, file


def test_no_circles_of_files_or_folders() -> None:
    files = {name_of(file): imported(file) for file in FILES}
    graphlib.TopologicalSorter(files).prepare()
    folders: dict[str, set[str]] = {}
    for module, others in files.items():
        folders.setdefault(top(module), set()).update({top(other) for other in others})
    graphlib.TopologicalSorter({k: v - {k} for k, v in folders.items()}).prepare()


def test_command_line_imports_nothing_heavy() -> None:
    tree = ast.parse((PACKAGE / "cli.py").read_text(encoding="utf-8"))
    lines = {ast.unparse(n) for n in tree.body if isinstance(n, ast.Import | ast.ImportFrom)}
    assert not any(re.search(r"\b(torch|hydra|mlflow)\b", line) for line in lines)


def functions(file: Path) -> Iterator[ast.FunctionDef]:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef):
            yield node


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_files_and_functions_are_short(file: Path) -> None:
    assert len(file.read_text(encoding="utf-8").splitlines()) <= 350
    for node in functions(file):
        assert (node.end_lineno or 0) - node.lineno < 60, f"{file.name}: {node.name}"


# A folder of operators has the same files; the commands and their short entries share a name.
SHARED_NAMES = {"op", "reference", "chunked", "cuda", "cpu", "base"}
COMMANDS = {"report", "predict", "sync", "doctor"}


def test_each_file_name_is_used_once() -> None:
    names = [file.stem for file in FILES if file.stem != "__init__"]
    twice = {name for name in names if names.count(name) > 1}
    assert twice <= SHARED_NAMES | COMMANDS


def test_small_files_have_several_importers() -> None:
    """A file whose objects conf names by `_target_` is used by a config group, too."""
    conf = "".join(file.read_text("utf-8") for file in get_conf_dir().rglob("*.yaml"))
    importers: dict[str, set[str]] = {}
    for file in FILES:
        for module in imported(file):
            importers.setdefault(module, set()).add(name_of(file))
    for file in FILES:
        lines = len(file.read_text(encoding="utf-8").splitlines())
        is_target = f"_target_: kinopoisk_ft.{name_of(file)}." in conf
        is_exempt = top(name_of(file)) in {"ops", *ENTRIES, "commands"} or file.stem == "__init__"
        if not (is_target or is_exempt):
            assert lines >= 60 or len(importers.get(name_of(file), ())) != 1, file


def test_hydras_state_is_read_in_two_folders() -> None:
    readers = {top(name_of(f)) for f in FILES if "HydraConfig" in f.read_text(encoding="utf-8")}
    assert readers <= {"config", "sweeps"}


# Why a file may import inside a function. Kernels of `ops` are compiled only if they are used.
LATE_IMPORTS = {
    "cli": "help and mistakes are answered before heavy packages are imported",
    "config.help": "--help needs no Hydra",
    "config.trust": "peft takes seconds and few configs name it",
    "console": "it silences libraries that a run imports anyway",
    "commands": "heavy packages, after the arguments are checked",
    "checks.machine": "the doctor reports what cannot be imported",
    "models.onnx_model": "onnxruntime is an extra",
    "provenance": "a run prints its first line before torch is imported",
    "serving.locate": "a model folder needs no MLflow",
    "serving.onnx_export": "onnx is an extra",
    "serving.predictor": "TF-IDF needs neither PEFT nor transformers",
    "serving.pyfunc": "MLflow imports it to log a model",
    "search.space": "Optuna is an extra",
    "search.study": "Optuna is an extra",
    "search.trial": "Optuna is an extra",
    "search.sweeper": "Hydra imports plugins at every start",
    "sweeps.preview": "an internal module of Hydra",
    "sweeps.joblib_jobs": "joblib's launcher is an extra",
    "sweeps.slurm_jobs": "submitit is an extra",
    "tasks.finetune": "TF-IDF needs neither PEFT nor transformers",
    "tasks.record": "matplotlib",
    "tracking.offline": "system metrics need MLflow, and few offline runs record them",
    "training.device": "POSIX only",
    "training.distributed.sharding": "FSDP takes a second, and few runs use it",
    "training.memory": "POSIX only",
    "training.loop": "TF-IDF needs no modelling code of transformers",
}


def test_imports_stand_at_the_top() -> None:
    found = set()
    for file in FILES:
        for node in functions(file):
            if any(isinstance(n, ast.Import | ast.ImportFrom) for n in ast.walk(node)):
                found.add(name_of(file))
    assert all({name, top(name)} & {*LATE_IMPORTS, "ops"} for name in found), found
    used = found | {top(name) for name in found}
    assert set(LATE_IMPORTS) <= used, "leave out what no longer imports late"


TESTS = Path(__file__).parent


def test_tests_mirror_the_package() -> None:
    folders = {f.relative_to(TESTS).parts[0] for f in TESTS.rglob("test_*.py") if f.parent != TESTS}
    # Tests of whole commands, of several hosts, and of code outside the package.
    beside = {"cli", "tools", "benchmarks", "cluster"}
    assert folders - beside <= {p.name for p in PACKAGE.iterdir() if p.is_dir()}
    stems = {path.stem for path in FILES} | {path.name for path in PACKAGE.iterdir()}
    loose = {file.stem.removeprefix("test_") for file in TESTS.glob("test_*.py")} - {"structure"}
    assert all(any(name.startswith(stem) for stem in stems) for name in loose), loose
