"""Adapt the documentation to the website: hooks of mkdocs, see mkdocs.yml.

- docs/options.md gets the list of all options, from conf and the signatures behind it, and
  docs/approaches.md the table of scores from the README.
- CONTRIBUTING.md and the pages of benchmarks are pages of the site, too.
- Links to other files of the repository become the names of these files, because the site does not
  contain them.
"""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from omegaconf import OmegaConf

from kinopoisk_ft.config.groups import get_conf_dir, list_options
from kinopoisk_ft.config.help import FIRST_GROUPS
from kinopoisk_ft.config.prepared import flatten
from kinopoisk_ft.config.schema import MAIN, Schema, build_schemas, read_comments

ROOT = Path(__file__).resolve().parents[1]
# The place of the list of all options in docs/options.md.
MARKER = "<!-- all options -->"
# The place of the README's table of scores in docs/approaches.md.
RESULTS = "<!-- results -->"
TABLE = re.compile(r"(?:^\|.*\n)+", re.MULTILINE)
# Files outside of docs that the site contains.
OUTSIDE = ("CONTRIBUTING.md", "benchmarks/README.md", "benchmarks/results/*.md",
           "benchmarks/results/*.png")  # fmt: skip
LINK = re.compile(r"\[([^\]]+)\]\(([^)#\s]+)(#[^)\s]*)?\)")
# Groups whose options are lists of settings of other groups.
PRESETS = ("experiment", "sweep")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are outside of the folder docs."""
    for pattern in OUTSIDE:
        for path in sorted(ROOT.glob(pattern)):
            name = path.relative_to(ROOT).as_posix()
            files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Insert the list of options, and adapt links to files that the site does not contain."""
    if MARKER in markdown:
        markdown = markdown.replace(MARKER, "\n".join(list_all_options()))
    if RESULTS in markdown:
        readme = (ROOT / "README.md").read_text(encoding="utf-8")
        results = readme.partition("## Results")[2]
        markdown = markdown.replace(RESULTS, TABLE.search(results)[0])
    outside = page.file.generated_by is not None
    folder = posixpath.dirname(page.file.src_uri if outside else f"docs/{page.file.src_uri}")

    def adapt(match: re.Match[str]) -> str:
        text, target, anchor = match.groups()
        if ":" in target:
            return match[0]
        path = posixpath.normpath(posixpath.join(folder, target))
        found = files.get_file_from_path(path.removeprefix("docs/"))
        # Without its folder, the repository's README.md has the name of docs/README.md.
        if not found or Path(found.abs_src_path) != ROOT / path or found.inclusion.is_excluded():
            named = path.endswith(".md") or text.strip("`") == path
            return text if named else f"{text} (`{path}`)"
        # mkdocs reads links relative to the page's place in the site, not in the repository.
        start = posixpath.dirname(page.file.src_uri) or "."
        return f"[{text}]({posixpath.relpath(found.src_uri, start)}{anchor or ''})"

    return LINK.sub(adapt, markdown)


def list_all_options() -> Iterator[str]:
    """Yield the lines of the list of all groups, their options and the keys of each option."""
    conf = get_conf_dir()
    schemas = build_schemas()
    yield from ["## The run itself", "", "Keys without a group, for example `seed=0`.", ""]
    yield from _list_keys(conf / f"{MAIN}.yaml", schemas[MAIN])
    groups = list_options(conf)
    for group in [*FIRST_GROUPS, *sorted(groups.keys() - {*FIRST_GROUPS})]:
        yield from ["", f"## {group}", "", "| option | what it is |", "|---|---|"]
        yield from (f"| `{name}` | {_escape(text)} |" for name, text in groups[group].items())
        if group not in PRESETS:
            for file in sorted((conf / group).glob("*.yaml")):
                yield from _describe_file(file, group, schemas[group.replace("/", "_")])


def _describe_file(file: Path, group: str, schema: Schema) -> Iterator[str]:
    lines = [*_list_keys(file, schema)]
    if lines:
        shared = file.stem.startswith("_")
        yield from ["", f"### {'all options of ' if shared else ''}{group}"
                    + ("" if shared else f"={file.stem}"), ""]  # fmt: skip
        defaults = OmegaConf.load(file).get("defaults") or []
        bases = [f"`{name}`" for name in defaults if isinstance(name, str) and name[0] != "_"]
        if bases:
            yield from [f"Based on {', '.join(bases)}; it sets:", ""]
        yield from lines


def _list_keys(file: Path, schema: Schema) -> Iterator[str]:
    node = cast(dict[str, Any], OmegaConf.to_container(OmegaConf.load(file)))
    node = {key: node[key] for key in node if key not in ("defaults", "hydra")}
    comments = read_comments(file)
    rows = [
        f"| `{key}` | `{json.dumps(value, ensure_ascii=False)}` | {_name_type(key, schema)} | "
        f"{_escape(comments.get(key, ''))} |"
        for key, value in flatten(node).items()
        if key.rpartition(".")[2][:1] != "_"
    ]
    if rows:
        yield from ["| key | value | type | meaning |", "|---|---|---|---|", *rows]


def _name_type(key: str, schema: Schema) -> str:
    """Return the type of a key in words; "" if the schema says nothing about it."""
    for option in schema.get("anyOf", [schema]):
        found = option.get("properties", {}).get(key)
        if found:
            return ", ".join(dict.fromkeys(_name_types(found)))
    return ""


def _name_types(schema: Schema) -> Iterator[str]:
    for part in schema.get("anyOf", []):
        yield from _name_types(part)
    if "enum" in schema:
        yield from (f"`{value}`" for value in schema["enum"])
    elif "const" in schema:
        yield f"`{schema['const']}`"
    elif schema.get("type") not in (None, "object"):
        yield str(schema["type"])


def _escape(text: str) -> str:
    return text.replace("|", "\\|")
