"""Test the notebooks: their stored outputs, their execution, and their installation of a wheel."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient
from places import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SETTING = 'REPOSITORY = ""'


def read_code(notebook: Path) -> list[Any]:
    nodes = nbformat.read(notebook, as_version=4).cells
    return [cell for cell in nodes if cell.cell_type == "code"]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_outputs_are_stored_without_errors_and_local_paths(notebook: Path) -> None:
    cells = read_code(notebook)
    assert [cell.execution_count for cell in cells] == [*range(1, len(cells) + 1)]
    outputs = [output for cell in cells for output in cell.outputs]
    assert len(outputs) > len(cells) / 2
    assert not any(output.output_type == "error" for output in outputs)
    assert str(ROOT) not in notebook.read_text("utf-8")


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_first_cell_installs_the_package_from_one_variable(notebook: Path) -> None:
    first, *others = read_code(notebook)
    assert SETTING in first.source
    assert "REPOSITORY" not in "".join(cell.source for cell in others)


@pytest.mark.slow
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_run_from_start_to_end(
    notebook: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    monkeypatch.setenv("KINOPOISK_FT_CACHE", str(tmp_path / "cache"))
    node = nbformat.read(notebook, as_version=4)
    # A failing cell raises an exception.
    NotebookClient(node, resources={"metadata": {"path": str(tmp_path)}}).execute()
    answers = [
        output.text
        for cell in node.cells
        if cell.cell_type == "code" and "kinopoisk-ft predict" in cell.source
        for output in cell.outputs
        if output.output_type == "stream"
    ]
    lines = "".join(answers).splitlines()
    for label, text in (("Good", "мне понравилась"), ("Bad", "мне не понравилась")):
        assert [line.split()[0] for line in lines if text in line] == [label]


def make_environment(folder: Path) -> Path:
    """Create a virtual environment with all packages of this one but kinopoisk_ft."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    packages = folder / "packages"
    packages.mkdir()
    for path in (Path(path) for path in sys.path if path.endswith("site-packages")):
        for entry in path.iterdir():
            if "kinopoisk" not in entry.name and not (packages / entry.name).exists():
                (packages / entry.name).symlink_to(entry)
    paths = {"base": str(folder), "platbase": str(folder)}
    site = Path(sysconfig.get_path("purelib", vars=paths))
    (site / "packages.pth").write_text(f"{packages}\n")
    return folder / "bin"


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="symbolic links need rights on Windows")
def test_the_first_cell_installs_a_wheel(tmp_path: Path) -> None:
    """Needs the index for the build backend, as all builds of a wheel do."""
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "-w", str(tmp_path), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    wheel = next(tmp_path.glob("*.whl"))
    programs = make_environment(tmp_path / "environment")
    first = read_code(NOTEBOOKS[0])[0].source.replace(SETTING, f'REPOSITORY = "{wheel}"')
    (tmp_path / "cell.ipy").write_text(
        f"{first}\nimport kinopoisk_ft\nprint(kinopoisk_ft.__file__)"
    )
    environment = {"PATH": f"{programs}:{os.environ['PATH']}", "PIP_NO_INDEX": "1",
                   "HOME": str(tmp_path), "IPYTHONDIR": str(tmp_path)}  # fmt: skip
    command = [programs / "python", "-m", "IPython", "--no-banner", "cell.ipy"]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert str(tmp_path / "environment") in done.stdout.splitlines()[-1]
    assert shutil.which("kinopoisk-ft", path=str(programs))
    train = ["kinopoisk-ft", "train", "model=tfidf", "data=demo", "data.reviews=300"]
    subprocess.run([programs / train[0], *train[1:]], cwd=tmp_path, env=environment, check=True)
