"""What a result depends on: config, files, code, packages, hardware and commit."""

from __future__ import annotations

import hashlib
import importlib.metadata
import inspect
import json
import os
import platform
import shlex
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import psutil
import torch
from hydra.utils import get_object

PACKAGE = Path(__file__).resolve().parent
PACKAGES = (
    "kinopoisk-ft", "torch", "transformers", "peft", "datasets", "tokenizers", "mlflow",
    "hydra-core", "numba", "numpy", "scikit-learn",
)  # fmt: skip
# Tags by which a later sweep finds what is finished.
IDENTITY, RESULT = "kinopoisk_ft.identity", "kinopoisk_ft.result"
NAMED = ("model", "adapter", "data")  # reports call a run by its choices, not by their values


def identity(config: dict[str, Any], choices: dict[str, str]) -> str:
    """Digest what makes two runs the same: the second of two with one digest need not be trained.

    Files and folders that the config names count by their content, a hub repository by its name
    and revision. Code counts by the content of the package's own files and of the modules of other
    `_target_`s, so that an edit counts before it is committed, and a commit without one does not.
    Hardware counts because times are compared.

    Args:
        config: plain values, without the keys that change no result.
        choices: option by config group.
    """
    parts = {
        "config": config,
        "choices": [choices[group] for group in NAMED],
        "files": {text: content(path) for text, path in sorted(_files(config))},
        "code": content(PACKAGE, "*.py"),
        "own": {target: _source(target) for target in sorted(_targets(config))},
        "packages": {"python": platform.python_version(), **versions()},
        "hardware": hardware(config["trainer"]["device"]),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def content(path: Path, pattern: str = "*") -> str:
    """Return the SHA-256 of a file, or of a folder's files that fit the pattern, with their names.

    A file whose size and time have not changed is read once in a process.
    """
    files = sorted(path.rglob(pattern)) if path.is_dir() else [path]
    whole = hashlib.sha256()
    for file in files:
        if file.is_file():
            name, stat = file.relative_to(path).as_posix(), file.stat()
            whole.update(f"{name}\0{_read(file, stat.st_size, stat.st_mtime_ns)}\n".encode())
    return whole.hexdigest()


@cache
def _read(file: Path, size: int, modified: int) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def hardware(device: str) -> str:
    """Return the name of what trains when this device is asked for."""
    if device in ("auto", "cuda") and torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return processor()


def _leaves(node: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Yield each text of a config with its key."""
    if isinstance(node, dict):
        for name, value in node.items():
            yield from _leaves(value, str(name))
    elif isinstance(node, list):
        for value in node:
            yield from _leaves(value, key)
    elif isinstance(node, str):
        yield key, node


def _files(config: dict[str, Any]) -> set[tuple[str, Path]]:
    """Return what the config of model, adapter and data names that is there to be read."""
    texts = {text for group in NAMED for _, text in _leaves(config[group]) if text}
    return {(text, Path(text)) for text in texts if os.path.exists(text)}


def _targets(config: dict[str, Any]) -> set[str]:
    """Return the `_target_`s from packages that nobody has listed with their versions."""
    known = {"kinopoisk_ft", *versions()}
    found = {text for key, text in _leaves(config) if key == "_target_"}
    return {target for target in found if target.partition(".")[0] not in known}


def _source(target: str) -> str:
    module = inspect.getmodule(get_object(target))
    file = getattr(module, "__file__", None)
    return content(Path(file)) if file else ""


def approach(choices: dict[str, str]) -> str:
    """Return what a table calls this run: "bert", or "bert + lora"."""
    model, adapter = choices["model"], choices["adapter"]
    return model if adapter == "none" else f"{model} + {adapter}"


def run_tags(
    choices: dict[str, str], seed: int, digest: str, overrides: list[str], command: str
) -> dict[str, str]:
    """Return the tags that a run starts with; `digest` is its `identity`."""
    chosen = {key: choices[key] for key in ("model", "adapter", "data", "experiment")}
    return {
        **chosen,
        "kinopoisk_ft.kind": "train" if choices["task"] == "finetune" else choices["task"],
        "approach": approach(choices),
        "seed": str(seed),
        "commit": commit(),
        IDENTITY: digest,
        "overrides": shlex.join(overrides),
        "command": command,
    }


@cache
def commit() -> str:
    """Return the commit of the checkout that the package runs from, `-dirty` if it was changed."""
    here = Path(__file__).resolve().parent
    try:
        found = subprocess.run(
            [
                "git",
                "-C",
                str(here),
                "describe",
                "--always",
                "--dirty",
                "--abbrev=12",
                "--exclude=*",
            ],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return found.stdout.strip()


def describe_environment(device: torch.device) -> dict[str, Any]:
    """Return versions, hardware and commit as plain values for a JSON file."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": processor(),
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "commit": commit(),
        "packages": versions(),
    }


def versions() -> dict[str, str | None]:
    """Return the versions of the packages that results depend on, None of one not installed."""
    found: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def processor() -> str:
    """Return the processor's name as the system tells it."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()
