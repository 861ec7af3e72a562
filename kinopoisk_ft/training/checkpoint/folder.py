"""Checkpoints on disk: folders of safetensors and JSON, each with a manifest of digests.

A checkpoint is made under another name, forced to disk and renamed, so that a crash leaves it
whole or not at all; what a disk does to it later the digests tell. The last two are kept.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from kinopoisk_ft.errors import UserError
from kinopoisk_ft.files import check_space, force, sha256, write_plain, writing

log = logging.getLogger(__name__)

FORMAT = 1
KEPT = 2  # the one before is needed if the last is damaged
MANIFEST, PLAIN, TENSORS = "manifest.json", "state.json", "state.safetensors"
NAME = re.compile(r"checkpoint-\d+")
ROOM = 2**20  # bytes for what is not a tensor


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint."""

    folder: Path
    plain: dict[str, Any]

    def tensors(self) -> dict[str, Tensor]:
        """Return its tensors, on the CPU."""
        return load_file(self.folder / TENSORS)


class CheckpointFolder:
    """The checkpoints in a folder, numbered in the order in which they were made."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(
        self, tensors: Mapping[str, Tensor], plain: dict[str, Any], beside: Mapping[str, str]
    ) -> None:
        """Add a checkpoint and delete all but the last two.

        Args:
            plain: what JSON can hold.
            beside: names and SHA-256 digests of files in the folder that belong to it as well.

        Raises:
            UserError: the disk is full or the folder read-only; earlier checkpoints are whole.
        """
        number = 1 + max((int(name.name.split("-")[1]) for name in self.folders()), default=0)
        target = self.folder / f"checkpoint-{number:06}"
        part = target.with_suffix(".part")
        try:
            with writing(self.folder):
                shutil.rmtree(part, ignore_errors=True)
                check_space(self.folder, sum(v.nbytes for v in tensors.values()) + ROOM)
                part.mkdir()
                write_tensors(tensors, part / TENSORS)
                write_plain(plain, part / PLAIN)
                files = {name: sha256(part / name) for name in (TENSORS, PLAIN)}
                manifest = {"format": FORMAT, "files": files, "beside": dict(beside)}
                write_plain(manifest, part / MANIFEST)
                force(part)
                os.replace(part, target)
                force(self.folder)
        finally:
            shutil.rmtree(part, ignore_errors=True)
        for old in self.folders()[:-KEPT]:
            shutil.rmtree(old, ignore_errors=True)

    def newest(self) -> Checkpoint | None:
        """Return the last whole checkpoint; newer ones that are damaged are told and deleted.

        One that cannot be read may be whole: it is told and stays.

        Raises:
            UserError: none is whole, and one cannot be read: to start over would cost it.
        """
        unread: tuple[Path, OSError] | None = None
        for folder in reversed(self.folders()):
            try:
                problem = self._problem(folder)
                if problem is None:
                    return Checkpoint(folder, _object(folder / PLAIN))
            except OSError as error:
                log.warning("%s is not used, and stays: it cannot be read: %s", folder, error)
                unread = unread or (folder, error)
                continue
            log.warning("%s is not used: %s", folder, problem)
            shutil.rmtree(folder, ignore_errors=True)
        if unread is not None:
            raise UserError(
                f"the last checkpoint cannot be read, and there is none before: {unread[1]}",
                where=str(unread[0]),
                fix="mend the rights or the disk and start the same command again, or start over "
                "with resume=never",
            )
        return None

    def folders(self) -> list[Path]:
        """Return the folders of all checkpoints, whole or not, oldest first."""
        found = self.folder.glob("checkpoint-*")
        return sorted(f for f in found if NAME.fullmatch(f.name))

    def beside(self) -> set[str]:
        """Return the names of the files that any checkpoint holds on to, or may hold on to."""
        found: set[str] = set()
        for folder in self.folders():
            try:
                found |= set(_manifest(folder).get("beside", {}))
            except OSError:  # what it says is not known
                found |= {file.name for file in self.folder.iterdir()}
        return found

    def _problem(self, folder: Path) -> str | None:
        """Return why a checkpoint is not whole; raises OSError where that cannot be read."""
        manifest = _manifest(folder)
        if manifest.get("format") != FORMAT or not {TENSORS, PLAIN} <= set(manifest["files"]):
            return "its manifest is missing or damaged"
        names = [*manifest["files"], *manifest["beside"]]
        if outside := [name for name in names if Path(name).name != name]:
            return f"its manifest names what is not in its folder: {outside[0]}"
        files = {folder / name: digest for name, digest in manifest["files"].items()}
        files |= {self.folder / name: digest for name, digest in manifest["beside"].items()}
        for file, digest in files.items():
            if not file.is_file():
                return f"{file.name} is missing"
            if sha256(file) != digest:
                return f"{file.name} is damaged: its SHA-256 digest is another"
        if not _object(folder / PLAIN):
            return f"{PLAIN} is no JSON object"
        return None if _holds_tensors(folder / TENSORS) else f"{TENSORS} holds no tensors"


def _holds_tensors(file: Path) -> bool:
    try:
        with safe_open(file, "pt"):
            return True
    except SafetensorError:
        return False


def _manifest(folder: Path) -> dict[str, Any]:
    """Return a checkpoint's manifest; empty where it cannot be read."""
    found = _object(folder / MANIFEST)
    return found if all(isinstance(found.get(key), dict) for key in ("files", "beside")) else {}


def _object(file: Path) -> dict[str, Any]:
    """Return the JSON object in a file; empty where there is none."""
    try:
        found = json.loads(file.read_text("utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def write_tensors(tensors: Mapping[str, Tensor], file: Path) -> None:
    """Write tensors of any device to a safetensors file and force it to disk."""
    save_file({name: value.contiguous() for name, value in tensors.items()}, file)
    force(file)
