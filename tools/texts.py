"""List the texts of the project, so that somebody who has not seen the code can read them.

    python tools/texts.py docstrings --seed 1 [--count 100]
    python tools/texts.py errors
    python tools/texts.py help

`docstrings` draws random docstrings; `errors` lists the message of each UserError as source text;
`help` lists the comments of the config groups, which `--help` shows.
"""

from __future__ import annotations

import argparse
import ast
import random
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kind", choices=("docstrings", "errors", "help"))
    parser.add_argument("--seed", type=int, default=0, help="random seed (%(default)s)")
    parser.add_argument("--count", type=int, default=100, help="number of docstrings (%(default)s)")
    args = parser.parse_args()
    if args.kind == "docstrings":
        found = [*docstrings()]
        drawn = random.Random(args.seed).sample(found, min(args.count, len(found)))
        for number, (place, text) in enumerate(drawn, start=1):
            print(f"{number}. {place}\n{text}\n")
    else:
        for place, text in errors() if args.kind == "errors" else help_lines():
            print(f"{place}: {text}")


def _sources() -> Iterator[tuple[str, ast.Module]]:
    for file in sorted((ROOT / "kinopoisk_ft").rglob("*.py")):
        yield file.relative_to(ROOT).as_posix(), ast.parse(file.read_text(encoding="utf-8"))


def docstrings() -> Iterator[tuple[str, str]]:
    """Yield the place and the text of each docstring of the package."""
    for path, tree in _sources():
        for node in ast.walk(tree):
            if isinstance(node, DOCUMENTED) and (text := ast.get_docstring(node)):
                name = "" if isinstance(node, ast.Module) else f" {node.name}"
                yield f"{path}{name}", text


def errors() -> Iterator[tuple[str, str]]:
    """Yield the place and the source text of each UserError that the package raises."""
    for path, tree in _sources():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "UserError":
                parts = [ast.unparse(arg) for arg in node.args]
                parts += [f"{word.arg}: {ast.unparse(word.value)}" for word in node.keywords]
                yield f"{path}:{node.lineno}", " | ".join(parts)


def help_lines() -> Iterator[tuple[str, str]]:
    """Yield the place and the text of each line of the config groups that has a comment."""
    for file in sorted((ROOT / "conf").rglob("*.yaml")):
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
            if "# " in line and not line.startswith(("# @package", "# yaml-language-server:")):
                yield f"{file.relative_to(ROOT).as_posix()}:{number}", line.strip()


if __name__ == "__main__":
    main()
