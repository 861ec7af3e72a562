"""Files of configs from elsewhere, looked at before Hydra reads them.

Hydra acts on its own part of a config before a job sees any of it: it builds callbacks, lets Python
set up logging, which calls what that names, and sets the environment. So the files are judged as
they stand. What only composing would show is refused with them: a value that is put together where
it would be run, a file that is moved to Hydra's part.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from kinopoisk_ft.errors import UserError
from kinopoisk_ft.targets import HYDRA, TRUST, is_trusted, refused

Keys = tuple[str, ...]

MAKERS = ("oc.create", "oc.decode")  # resolvers that turn text into nodes
# The name of a resolver that is put together: `${oc.${x}:…}`.
ASSEMBLED = re.compile(r"\$\{[^:{}]*\$\{")
# What Python's logging may be told to make: the rest of its modules runs code from files or texts.
LOGGING = (
    "logging.StreamHandler", "logging.FileHandler", "logging.NullHandler", "logging.Formatter",
    "logging.Filter", "logging.handlers.RotatingFileHandler",
    "logging.handlers.TimedRotatingFileHandler", "colorlog.ColoredFormatter",
    "colorlog.StreamHandler",
)  # fmt: skip
IMPORTS = ("ext://", "cfg://")  # logging takes what follows for something to import or to look up
STREAMS = ("ext://sys.stdout", "ext://sys.stderr")
# The environment and the places of configs are the user's to set.
RESERVED = {"env_set", "searchpath"}
# What a cluster's shell runs: as Slurm's `setup` lines, or as arguments of its commands.
SHELL = {"setup", "srun_args", "additional_parameters"}
OF_HYDRA = "${hydra.runtime."
# Where a log may be written: beside the job's other files.
LOG_FILE = re.compile(r"\$\{hydra\.runtime\.output_dir\}/(\$\{hydra\.job\.name\}|[\w.-])+")
# An override of Hydra's part, in a sweeper's parameters, or a file that is moved there.
OVERRIDE = re.compile(r"^[+~]*hydra\.|@.*hydra")
PACKAGE = re.compile(r"@package\s+(\S+)")


def check_folders(folders: Iterable[Path]) -> None:
    """Raise UserError for what a folder of configs names that may not be run."""
    for folder in folders:
        for file, group in _files(folder):
            for line in _foreign_lines(file, group, folder.resolve()):
                raise UserError(line, where=str(file), fix="leave it out, or trust its package")


def _files(folder: Path) -> Iterator[tuple[Path, Keys]]:
    """Yield the configs of a folder with their groups; links are followed as Hydra does.

    A folder that several links lead to comes once, and once more as each of Hydra's groups.
    """
    seen: set[tuple[str, Keys]] = set()
    for name, inner, files in os.walk(folder, followlinks=True):
        group = Path(name).relative_to(folder).parts
        place = (os.path.realpath(name), group[:2] if group[:1] == ("hydra",) else ())
        if place in seen:
            inner.clear()
            continue
        seen.add(place)
        inner.sort()
        yield from ((Path(name) / f, group) for f in sorted(files) if f.lower().endswith(".yaml"))


def _foreign_lines(file: Path, group: Keys, folder: Path) -> Iterator[str]:
    try:
        text = file.read_text(encoding="utf-8")
        node = OmegaConf.to_container(OmegaConf.load(file), resolve=False)
    except Exception:  # of many kinds; Hydra cannot read it either, and says so if it is chosen
        return
    package = tuple(key for found in PACKAGE.findall(text[:512]) for key in found.split("."))
    place = (group if group[:1] == ("hydra",) else ()) + package
    if isinstance(node, dict) and "hydra" in place:
        yield from _moved(node.get("defaults"), "hydra" in package)
    for where, keys, value in _nodes(node, ""):
        told = _brought(value, folder) if keys[-1:] == ("_target_",) else None
        if told := told or _problem((*place, *keys), value):
            yield f"{where}: {told}"


def _moved(defaults: Any, by_header: bool) -> Iterator[str]:
    """Tell of what a file of Hydra's part would take there from a group that is none of Hydra's."""
    for entry in defaults if isinstance(defaults, list) else ():
        plain = isinstance(entry, str) and not set("/@") & set(entry)
        if not plain or (by_header and entry != "_self_"):
            yield f"defaults: Hydra's own part may not take in other groups: {entry}"


def _nodes(node: Any, where: str, keys: Keys = ()) -> Iterator[tuple[str, Keys, Any]]:
    """Yield every node of a config, those inside first, with its place in words and its keys."""
    inner: Iterable[tuple[str, Keys, Any]] = ()
    if isinstance(node, dict):
        inner = ((f"{where}.{k}" if where else str(k), (str(k),), v) for k, v in node.items())
    elif isinstance(node, list):
        inner = ((f"{where}[{number}]", (), value) for number, value in enumerate(node))
    for place, key, value in inner:
        yield from _nodes(value, place, keys + key)
    yield where, keys, node


def _problem(keys: Keys, value: Any) -> str | None:
    """Return why a value may not stand where it does, None if it may."""
    key = keys[-1] if keys else ""
    if key == "_target_":
        return refused(value, *HYDRA)
    if key in ("()", "class") and not (value in LOGGING or is_trusted(value)):
        return (
            f"logging would call {value!r}, which is none of its own handlers and formatters; if "
            f"you trust whoever wrote this config, name its package in {TRUST} in the environment"
        )
    if value and (own := RESERVED & set(keys)):
        return f"a file of configs may not set Hydra's '{min(own)}'"
    if value and "hydra" in keys and "launcher" in keys and (shell := SHELL & set(keys)):
        name = min(shell)
        return (
            f"a file of configs may not say what a cluster runs: write hydra.launcher.{name}=… "
            "on the command line"
        )
    if key == "filename" and _logs(keys) and not LOG_FILE.fullmatch(str(value)):
        return f"a log is written to '${{hydra.runtime.output_dir}}/…', not to '{value}'"
    if OVERRIDE.search(key):
        return "a config may not reach into Hydra's own part from elsewhere"
    return _text_problem(keys, value) if isinstance(value, str) else None


def _text_problem(keys: Keys, text: str) -> str | None:
    if any(maker in text for maker in MAKERS) or (ASSEMBLED.search(text) and ":" in text):
        return f"a config may not make nodes out of text: '{text}'"
    if any(prefix in text for prefix in IMPORTS) and text not in STREAMS:
        return f"'{text}' would be imported; only {' and '.join(STREAMS)} may stand here"
    if "@" in text and "defaults" in keys and "hydra" in text:
        return "a config may not reach into Hydra's own part from elsewhere"
    if {"defaults", "params"} & set(keys) and "../" in text:
        return f"'{text}' leads out of the folder"
    return _taken(keys, text)


def _logs(keys: Keys) -> bool:
    return bool({"job_logging", "hydra_logging"} & set(keys))


def _taken(keys: Keys, text: str) -> str | None:
    """Return why a text may not be part of logging, which would import what it may turn out to be.

    Where a run is, Hydra says; a file that says it is a copy that Hydra kept of a run's config.
    """
    open_ended = (
        (keys[-1:] == ("hydra",) or _logs(keys)) and "${" in text and not text.startswith(OF_HYDRA)
    )
    if open_ended or (text and {"hydra", "runtime"} <= set(keys)):
        before = text.partition("${")[0]
        if any(prefix.startswith(before) for prefix in IMPORTS):
            return f"logging is not taken from elsewhere: write '{text}' out"
    return None


def _brought(target: Any, folder: Path) -> str | None:
    """Return why code that lies among the configs may not be run, None if there is none.

    A folder below the working directory is a package to Python. One that the user put on Python's
    path is another matter.
    """
    top = str(target).partition(".")[0]
    for entry in (Path(entry).resolve() for entry in sys.path):
        inside = entry.is_relative_to(folder)
        if not inside and (entry / top).resolve().is_relative_to(folder):
            return f"'{target}' is code that came with the configs: put it elsewhere to run it"
    return None
