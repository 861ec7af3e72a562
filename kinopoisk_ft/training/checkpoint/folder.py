"""Write and read checkpoints.

A checkpoint is a folder with a safetensors file, a JSON file and a manifest of file digests. A new
checkpoint has a temporary name until it is complete, so that a crash leaves no incomplete
checkpoint. If a digest reveals damage, the previous checkpoint is used.
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

from safetensors.torch import load_file, save_file
from torch import Tensor

from kinopoisk_ft.errors import UserError
from kinopoisk_ft.files import (
    check_space,
    compute_sha256,
    sync_to_disk,
    wrap_checkpoint_errors,
    write_json_durably,
)

log = logging.getLogger(__name__)

# Format of new checkpoints. Format 1 is converted by `upgrade_format_1`.
FORMAT = 2
READABLE = (1, 2)
# Number of checkpoints to keep, so that one remains if the last one is damaged.
KEPT = 2
MANIFEST, PLAIN, TENSORS = "manifest.json", "state.json", "state.safetensors"
NAME = re.compile(r"checkpoint-\d+")
# Space for the JSON files in bytes.
ROOM = 2**20


@dataclass(frozen=True)
class Checkpoint:
    """A valid checkpoint."""

    folder: Path
    format: int
    plain: dict[str, Any]

    def load_tensors(self) -> dict[str, Tensor]:
        """Load the tensors to the CPU."""
        return load_file(self.folder / TENSORS)


class CheckpointFolder:
    """The numbered checkpoints of one run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(
        self, tensors: Mapping[str, Tensor], plain: dict[str, Any], external: Mapping[str, str]
    ) -> None:
        """Write a new checkpoint, and delete all but the last two.

        Args:
            plain: values for the JSON file.
            external: {name: SHA-256 digest} of each file that the checkpoint needs but does not
                contain.

        Raises:
            UserError: the disk is full or the folder read-only. Earlier checkpoints stay valid.
        """
        # A counter is used instead of the step, because one step can have two checkpoints: one
        # before its evaluation, if a signal stops the run there, and one after it.
        number = 1 + max((int(name.name.split("-")[1]) for name in self.folders()), default=0)
        target = self.folder / f"checkpoint-{number:06}"
        part = target.with_suffix(".part")
        try:
            with wrap_checkpoint_errors(self.folder):
                # A process that was killed while it wrote this checkpoint leaves the folder.
                shutil.rmtree(part, ignore_errors=True)
                check_space(self.folder, sum(v.nbytes for v in tensors.values()) + ROOM)
                part.mkdir()
                write_tensors(tensors, part / TENSORS)
                write_json_durably(plain, part / PLAIN)
                files = {name: compute_sha256(part / name) for name in (TENSORS, PLAIN)}
                manifest = {"format": FORMAT, "files": files, "beside": dict(external)}
                write_json_durably(manifest, part / MANIFEST)
                # The contents must be on disk before the rename makes the folder a checkpoint.
                sync_to_disk(part)
                os.replace(part, target)
                sync_to_disk(self.folder)
        finally:
            shutil.rmtree(part, ignore_errors=True)
        # Delete last, so that a failed write leaves the earlier checkpoints.
        for old in self.folders()[:-KEPT]:
            shutil.rmtree(old, ignore_errors=True)

    def newest(self) -> Checkpoint | None:
        """Return the newest valid checkpoint, or None.

        Checkpoints are tried from the newest to the oldest. A damaged checkpoint is deleted. A
        checkpoint that cannot be read is skipped but not deleted, because it may be valid.

        Raises:
            UserError: a checkpoint cannot be read, and no other checkpoint is valid.
        """
        unread: tuple[Path, OSError] | None = None
        for folder in reversed(self.folders()):
            try:
                problem = self._find_problem(folder)
                if problem is None:
                    manifest, plain = _read_manifest(folder), _read_object(folder / PLAIN)
                    return Checkpoint(folder, manifest["format"], plain)
            except OSError as error:
                log.warning(
                    "skipping the checkpoint %s, because it cannot be read: %s", folder, error
                )
                unread = unread or (folder, error)
                continue
            log.warning("deleting the checkpoint %s, because it is not valid: %s", folder, problem)
            # If it stayed, `write` would keep it as one of the last two and delete a valid one.
            shutil.rmtree(folder, ignore_errors=True)
        if unread is not None:
            raise UserError(
                f"the last checkpoint cannot be read, and no other one is valid: {unread[1]}",
                where=str(unread[0]),
                fix="fix the file permissions or the disk and run the same command again, or start "
                "over with resume=never",
            )
        return None

    def folders(self) -> list[Path]:
        """Return the folders of all valid and invalid checkpoints, oldest first."""
        found = self.folder.glob("checkpoint-*")
        return sorted(f for f in found if NAME.fullmatch(f.name))

    def list_external_files(self) -> set[str]:
        """Return the names of the files that checkpoints need but do not contain."""
        found: set[str] = set()
        for folder in self.folders():
            try:
                found |= set(_read_manifest(folder).get("beside", {}))
            except OSError:
                # The manifest cannot be read, so the checkpoint may need any of the files.
                found |= {file.name for file in self.folder.iterdir()}
        return found

    def _find_problem(self, folder: Path) -> str | None:
        manifest = _read_manifest(folder)
        if manifest.get("format") not in READABLE or not {TENSORS, PLAIN} <= set(manifest["files"]):
            return f"{MANIFEST} is missing or damaged"
        names = [*manifest["files"], *manifest["beside"]]
        # A manifest from elsewhere must not refer to files outside of the run folder.
        if outside := [name for name in names if Path(name).name != name]:
            return f"{MANIFEST} contains the name of a file in another folder: {outside[0]}"
        files = {folder / name: digest for name, digest in manifest["files"].items()}
        files |= {self.folder / name: digest for name, digest in manifest["beside"].items()}
        for file, digest in files.items():
            if not file.is_file():
                return f"{file.name} is missing"
            if compute_sha256(file) != digest:
                return f"{file.name} is damaged, because its SHA-256 digest differs"
        if not _read_object(folder / PLAIN):
            return f"{PLAIN} is not a JSON object"
        return None


def write_tensors(tensors: Mapping[str, Tensor], file: Path) -> None:
    """Write tensors to a safetensors file, and sync the file to disk."""
    # safetensors refuses tensors that are not contiguous, such as transposed views.
    save_file({name: value.contiguous() for name, value in tensors.items()}, file)
    sync_to_disk(file)


def _read_manifest(folder: Path) -> dict[str, Any]:
    found = _read_object(folder / MANIFEST)
    return found if all(isinstance(found.get(key), dict) for key in ("files", "beside")) else {}


def _read_object(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text("utf-8"))
    # Damage can even nest lists so deeply that the parser raises RecursionError. Other OSErrors
    # are raised, because a disk that fails does not prove that the file is damaged.
    except (FileNotFoundError, NotADirectoryError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
