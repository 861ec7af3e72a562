"""Test the documentation: its links, its commands, and the website that is made from it."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from browser import CHROMIUM, visit
from composing import compose_config, plain
from places import ROOT

from kinopoisk_ft.config.groups import get_conf_dir, list_options
from kinopoisk_ft.config.validate import find_errors

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")),
         ROOT / "docs/comparison/README.md"]  # fmt: skip
# Links, not images.
LINK = re.compile(r"(?<!!)\[[^\]]+\]\(([^)#\s]+)")
# What a browser loads without a click.
LOADED = re.compile(r"<(?:script|img|link|iframe)\b[^>]*?\b(?:src|href)=\"?(https?:[^\"\s>]+)")


def read(file: Path) -> str:
    """Return the text of a page, or of all cells of a notebook."""
    text = file.read_text("utf-8")
    if file.suffix == ".md":
        return text
    return "\n\n".join("".join(cell["source"]) for cell in json.loads(text)["cells"])


@pytest.fixture(scope="module")
def hooks() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_site", ROOT / "tools" / "docs_site.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_links_to_files_lead_somewhere() -> None:
    links = [(page, target) for page in [*PAGES, *NOTEBOOKS] for target in LINK.findall(read(page))]
    inside = [(page, target) for page, target in links if ":" not in target]
    assert len(inside) > 50
    assert [link for link in inside if not (link[0].parent / link[1]).exists()] == []


def list_train_commands(page: Path) -> Iterator[list[str]]:
    """Yield the overrides of each `kinopoisk-ft train` in code of a page, without placeholders."""
    text = read(page).replace("\\\n", " ")
    for line in re.findall(
        r"^(?: {4,}|!|\w+=\S+ )?\s*(kinopoisk-ft train .*)$", text, re.MULTILINE
    ):
        words = shlex.split(re.sub(r"<[^>]*>", "placeholder", line), comments=True)[2:]
        if not any(word.startswith("-") for word in words):
            yield words


@pytest.mark.slow
def test_train_commands_have_valid_options() -> None:
    commands = [words for page in [*PAGES, *NOTEBOOKS] for words in list_train_commands(page)]
    assert len(commands) > 10
    for words in commands:
        plain_words = [word for word in words if not word.startswith(("sweep=", "hydra"))]
        if not any("/" in word.partition("=")[0] for word in plain_words):
            assert find_errors(plain(compose_config(plain_words))) == [], words


def test_no_page_claims_that_the_package_is_on_an_index() -> None:
    for page in [*PAGES, *NOTEBOOKS]:
        assert not re.search(r"pip install[^\n`]*\bkinopoisk[-_]ft", read(page)), page


@pytest.mark.slow
def test_the_page_of_options_lists_every_option_with_types(hooks: ModuleType) -> None:
    text = "\n".join(hooks.list_all_options())
    for group, options in list_options(get_conf_dir()).items():
        assert f"\n## {group}\n" in text
        assert all(f"| `{option}` |" in text for option in options)
    assert "| `epochs` | `3` | integer | " in text
    assert '| `precision` | `"auto"` | `auto`, `fp32`, `bf16`, `fp16` | ' in text
    assert "rank of the updates" in text


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the website in strict mode, in which a broken link is an error."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
def test_the_site_has_all_pages_and_loads_nothing_from_elsewhere(site: Path) -> None:
    for page in ROOT.glob("docs/*.md"):
        assert (site / page.with_suffix(".html").name.replace("README", "index")).is_file()
    assert "0.947 ± 0.002" in (site / "approaches.html").read_text("utf-8")
    assert "max_bad_steps" in (site / "options.html").read_text("utf-8")
    assert "load_tokenizer" in (site / "api.html").read_text("utf-8")
    for page in site.rglob("*.html"):
        assert LOADED.findall(page.read_text("utf-8")) == [], page


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_the_search_works_without_a_server(site: Path) -> None:
    address = f"{(site / 'index.html').as_uri()}?q=truncation"
    page, complaints = visit(address, "--virtual-time-budget=8000", "--dump-dom")
    assert complaints == ""
    assert re.search(r"matching documents.*Preprocessing", page, re.DOTALL)
