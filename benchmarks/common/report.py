"""Define the options of all benchmarks, and write their figures as Markdown and JSON."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from kinopoisk_ft.files import write_atomically
from kinopoisk_ft.provenance import describe_environment, get_commit

SHOWN = ("torch", "numba", "transformers", "mambapy")


@dataclass
class Section:
    """A table with a title and a note; all rows have the same keys, which are the columns."""

    title: str
    note: str
    rows: list[dict[str, Any]]


def command_line(description: str) -> argparse.ArgumentParser:
    """Return a parser with the options of every benchmark."""
    # `get_commit` caches its value, so a commit during the run does not change the published one.
    get_commit()
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small sizes, under a minute")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to FILE")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="also write tables to FILE")
    return parser


def missing(names: Sequence[str], found: Collection[str]) -> str:
    """Return a sentence for each implementation that is not installed."""
    return "".join(f" {name} is not installed and left out." for name in names if name not in found)


def publish(title: str, sections: Sequence[Section], args: argparse.Namespace, remark: str) -> None:
    """Print the tables and write the requested files; `remark` applies to all tables."""
    machine = describe_machine()
    text = f"# {title}\n\n    {machine['command']}\n\n{_sentence(machine)} {remark}\n"
    for section in sections:
        text += f"\n## {section.title}\n\n{section.note}\n\n{markdown_table(section.rows)}\n"
    print(text)
    if args.markdown:
        write_atomically(args.markdown, text)
    if args.json:
        found = {**machine, "remark": remark, "sections": [asdict(section) for section in sections]}
        write_atomically(args.json, json.dumps(found, indent=2) + "\n")


def describe_machine() -> dict[str, Any]:
    """Return the command, the machine and the versions as values for JSON."""
    try:
        script = Path(sys.argv[0]).resolve().relative_to(Path.cwd())
    except ValueError:
        script = Path(sys.argv[0])
    found = describe_environment(torch.device("cpu"))
    found["command"] = shlex.join(["python", script.as_posix(), *sys.argv[1:]])
    found["instructions"] = torch.backends.cpu.get_cpu_capability()
    try:
        found["packages"]["mambapy"] = version("mambapy")
    except PackageNotFoundError:
        found["packages"]["mambapy"] = None
    return found


def _sentence(machine: dict[str, Any]) -> str:
    names = {name: machine["packages"][name] for name in SHOWN}
    versions = ", ".join(f"{name} {x}" if x else f"no {name}" for name, x in names.items())
    return (
        f"{machine['processor']} ({machine['instructions']}), {machine['cores']} cores, "
        f"{machine['torch_threads']} threads, {machine['memory_gib']} GiB; "
        f"Python {machine['python']}, {versions}; commit {machine['commit']}."
    )


def markdown_table(rows: Sequence[dict[str, Any]]) -> str:
    """Return a Markdown table; the keys of the first row are its columns."""
    lines = [list(rows[0]), ["---"] * len(rows[0])]
    lines += [[_shown(value) for value in row.values()] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _shown(value: Any) -> str:
    """Format a float with three significant digits, with an exponent only if it is shorter."""
    if not isinstance(value, float):
        return "-" if value is None else str(value)
    if value and not 1e-3 <= abs(value) < 1e6:
        return f"{value:.1e}"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:#.3g}".rstrip(".")
