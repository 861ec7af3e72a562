"""Identify runs that would give the same result, and describe the environment of a run."""

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
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
from hydra.utils import get_object

from kinopoisk_ft.errors import UserError
from kinopoisk_ft.files import PACKAGE, compute_sha256
from kinopoisk_ft.training.distributed import torchrun

if TYPE_CHECKING:
    import torch

PACKAGES = (
    "kinopoisk-ft", "torch", "transformers", "peft", "datasets", "tokenizers", "mlflow",
    "hydra-core", "numba", "numpy", "scikit-learn",
)  # fmt: skip
# MLflow tags with which a later sweep finds finished runs and reads their results.
IDENTITY, RESULT = "kinopoisk_ft.identity", "kinopoisk_ft.result"
# The content of a larger folder is not read: a value such as "/" names every file of a computer.
MOST_FILES = 10_000
# Config groups whose chosen options name a run in reports.
NAME_GROUPS = ("model", "adapter", "data")


def compute_identity(config: dict[str, Any], choices: dict[str, str]) -> str:
    """Compute a SHA-256 digest that is equal only for runs that would give the same result.

    The digest covers the config, the source code, the package versions, the hardware and the number
    of processes. The last two are included because reports compare times. An uncommitted edit of
    the code changes the digest, and a commit alone does not. Local files and folders in the config
    are covered with their content, but hub repositories only with their name and revision.

    Args:
        config: the resolved config as a dict, without the keys that do not change the result.
        choices: the chosen option of each config group.
    """
    parts = {
        "config": config,
        "choices": [choices[group] for group in NAME_GROUPS],
        "files": {text: digest_content(path) for text, path in sorted(_find_files(config))},
        "code": digest_content(PACKAGE, "*.py"),
        "targets": {target: _digest_source(target) for target in sorted(_find_targets(config))},
        "packages": {"python": platform.python_version(), **get_versions()},
        "hardware": get_hardware(config["trainer"]["device"]),
        "processes": torchrun.world_size(),
    }
    # Sorted keys make the digest independent of the order of the options.
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def digest_content(path: Path, pattern: str = "*") -> str:
    """Return a SHA-256 digest of a file or folder.

    For a folder, the digest covers the names and contents of files that match `pattern`. A file
    is read again only if its size or modification time has changed.

    Raises:
        UserError: the folder has more than MOST_FILES files, so it was probably set by mistake.
    """
    # The order of `rglob` depends on the file system, so the files are sorted.
    files = sorted(islice(path.rglob(pattern), MOST_FILES + 1)) if path.is_dir() else [path]
    if len(files) > MOST_FILES:
        raise UserError(
            f"the folder has more than {MOST_FILES:,} files, which is too many for a model or a "
            "data set",
            where=str(path),
            fix="change the option that names this folder",
        )
    digest = hashlib.sha256()
    for file in files:
        if file.is_file():
            name, stat = file.relative_to(path).as_posix(), file.stat()
            part = _digest_file(file, stat.st_size, stat.st_mtime_ns)
            # File names cannot contain a null character, so it separates name and digest.
            digest.update(f"{name}\0{part}\n".encode())
    return digest.hexdigest()


# The size and the modification time are arguments so that they are part of the cache key.
@cache
def _digest_file(file: Path, size: int, modified: int) -> str:
    return compute_sha256(file)


def get_hardware(device: str) -> str:
    """Return the name of the GPU or CPU that a value of `trainer.device` selects."""
    import torch

    if device in ("auto", "cuda") and torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return get_processor()


def _iterate_strings(node: Any, key: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(node, dict):
        for name, value in node.items():
            yield from _iterate_strings(value, str(name))
    elif isinstance(node, list):
        for value in node:
            yield from _iterate_strings(value, key)
    elif isinstance(node, str):
        yield key, node


def _find_files(config: dict[str, Any]) -> set[tuple[str, Path]]:
    # Other groups may also contain paths, for example of a store, which do not change the result.
    texts = {text for group in NAME_GROUPS for _, text in _iterate_strings(config[group]) if text}
    # Data sets expand ~, too. `Path.exists` would raise an error for strings that are longer than a
    # file name can be.
    paths = {text: os.path.expanduser(text) for text in texts}
    return {(text, Path(path)) for text, path in paths.items() if os.path.exists(path)}


def _find_targets(config: dict[str, Any]) -> set[str]:
    # The digest covers the source or the version of these packages separately.
    known = {"kinopoisk_ft", *get_versions()}
    targets = {text for key, text in _iterate_strings(config) if key == "_target_"}
    return {target for target in targets if target.partition(".")[0] not in known}


def _digest_source(target: str) -> str:
    module = inspect.getmodule(get_object(target))
    file = getattr(module, "__file__", None)
    return digest_content(Path(file)) if file else ""


def name_approach(choices: dict[str, str]) -> str:
    """Return the name of an approach for tables, such as "bert" or "bert + lora"."""
    model, adapter = choices["model"], choices["adapter"]
    return model if adapter == "none" else f"{model} + {adapter}"


def make_tags(
    choices: dict[str, str], seed: int, digest: str, overrides: list[str], command: str
) -> dict[str, str]:
    """Return the tags of a new run."""
    return {
        **{group: choices[group] for group in (*NAME_GROUPS, "experiment")},
        "kinopoisk_ft.kind": "train" if choices["task"] == "finetune" else choices["task"],
        "approach": name_approach(choices),
        "seed": str(seed),
        "commit": get_commit(),
        IDENTITY: digest,
        "overrides": shlex.join(overrides),
        "command": command,
    }


@cache
def get_commit() -> str:
    """Return the git commit of the package, with "-dirty" if files have changed, or "unknown"."""
    # Without `--exclude=*`, `git describe` would name the commit after a tag.
    command = "git describe --always --dirty --abbrev=12 --exclude=*"
    try:
        done = subprocess.run(
            command.split(), cwd=PACKAGE, capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.strip()


def describe_environment(device: torch.device) -> dict[str, Any]:
    """Return the hardware, package versions and commit for a JSON file.

    The memory is in GiB.
    """
    import torch

    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": get_processor(),
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "commit": get_commit(),
        "packages": get_versions(),
    }


def get_versions() -> dict[str, str | None]:
    """Return the version of each package in `PACKAGES`, or None for a missing package."""
    versions: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return versions


def get_processor() -> str:
    """Return the model name of the CPU."""
    # On Linux, `platform.processor` often returns an empty string.
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()
