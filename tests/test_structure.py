"""Imports point one way, and files keep to the house's measures."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import kinopoisk_ft

PACKAGE = Path(kinopoisk_ft.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
# What a folder must not know of.
ABOVE = {"reporting", "statistics", "run"}
BELOW = {"ops", "models", "adapters", "data", "training"}
FORBIDDEN = {
    "ops": {"models", "adapters", "data", "training", "tracking", "serving"} | ABOVE,
    "data": {"models", "adapters", "training", "tracking", "serving"} | ABOVE,
    "training": {"models", "adapters", "data", "tracking", "serving"} | ABOVE,
    "tracking": {"models", "adapters", "data", "training", "serving"} | ABOVE,
    "adapters": {"data", "training", "tracking", "serving"} | ABOVE,
    "models": {"data", "training", "tracking", "serving"} | ABOVE,
    "statistics": {*BELOW, "tracking", "serving"} | ABOVE - {"statistics"},
    "search": {*BELOW - {"training"}, "serving"} | ABOVE,
    "reporting": {*BELOW, "serving", "run"},
    "serving": {"baseline", "fitting", "record"} | ABOVE,
    "checks": {"models", "adapters", "data", "serving"} | ABOVE,
}


def imported(file: Path) -> set[str]:
    """Return the parts of the package that a file imports, at any depth."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        found |= {name.split(".")[1] for name in names if name.startswith("kinopoisk_ft.")}
    return found


def test_files_are_found() -> None:
    assert len(FILES) > 50
    assert set(FORBIDDEN) == {p.name for p in PACKAGE.iterdir() if (p / "__init__.py").exists()}


@pytest.mark.parametrize("folder", FORBIDDEN)
def test_imports_point_one_way(folder: str) -> None:
    for file in (PACKAGE / folder).rglob("*.py"):
        assert not imported(file) & FORBIDDEN[folder], file


def test_command_line_imports_nothing_heavy() -> None:
    tree = ast.parse((PACKAGE / "cli.py").read_text(encoding="utf-8"))
    top = {ast.unparse(node) for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)}
    assert not any(name in line for line in top for name in ("torch", "hydra", "mlflow"))


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.relative_to(PACKAGE).as_posix())
def test_functions_fit_a_screen(file: Path) -> None:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef):
            assert (node.end_lineno or 0) - node.lineno < 60, f"{file.name}: {node.name}"
