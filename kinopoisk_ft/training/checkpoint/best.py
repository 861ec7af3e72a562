"""Save and restore the weights of the best evaluation."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from kinopoisk_ft.errors import UserError
from kinopoisk_ft.files import check_space, compute_sha256, sync_to_disk, wrap_checkpoint_errors
from kinopoisk_ft.training.checkpoint.folder import CheckpointFolder, write_tensors
from kinopoisk_ft.training.distributed.processes import (
    broadcast_from_main,
    broadcast_tensors,
    is_main,
)
from kinopoisk_ft.training.distributed.sharding import gather_tensor, shard_like


class BestWeights:
    """Saves and restores the trainable weights and the buffers of the best evaluation.

    The weights of each new best evaluation are saved to a new file, because a checkpoint may need
    the earlier file.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file: Path | None = None
        # SHA-256 digest (hex) of the file. Checkpoints store it, so that damage is detected.
        self.digest = ""

    def save(self, model: nn.Module, step: int) -> None:
        """Save the weights atomically, so that an interruption leaves the previous file valid."""
        file = self.folder / f"best-{step:08}.safetensors"
        # All ranks take part, because gathering a sharded tensor is a collective operation.
        tensors = {name: gather_tensor(value) for name, value in trained_tensors(model).items()}
        if not is_main():
            return
        part = file.with_suffix(".part")
        with wrap_checkpoint_errors(self.folder):
            check_space(self.folder, sum(value.nbytes for value in tensors.values()))
            write_tensors(tensors, part)
            digest = compute_sha256(part)
            os.replace(part, file)
            # The rename survives a power failure only if the folder is synced, too (fsync(2)).
            sync_to_disk(self.folder)
        self.file, self.digest = file, digest
        self.discard()

    def restore(self, model: nn.Module) -> None:
        """Load the saved weights into the model; raise UserError if they cannot be read."""
        tensors: dict[str, Tensor] = {}
        # Only rank 0 has the file. `update` returns None, so the tensors are not pickled here.
        broadcast_from_main(lambda: tensors.update(self._read()))
        copy_tensors(broadcast_tensors(tensors), model)

    def _read(self) -> dict[str, Tensor]:
        try:
            if self.file and self.file.is_file() and compute_sha256(self.file) == self.digest:
                return load_file(self.file)
        except OSError as error:
            raise UserError(
                f"the best weights of this run cannot be read: {error}",
                where=str(self.file),
                fix="fix the file permissions or the disk, and run the same command again",
            ) from error
        raise UserError(
            "the best weights of this run are missing or damaged",
            where=str(self.file or self.folder),
            fix="train again with resume=never",
        )

    def discard(self) -> None:
        """Delete the weight files, except the latest one and those that a checkpoint needs."""
        keep = CheckpointFolder(self.folder).list_external_files()
        # The pattern also finds the .part file of a process that was killed while it saved.
        for file in self.folder.glob("best-*"):
            if file != self.file and file.name not in keep:
                file.unlink(missing_ok=True)

    def state_dict(self) -> dict[str, Any]:
        """Return the name and digest of the last saved file; both are empty if there is none."""
        return {"file": self.file.name if self.file else "", "digest": self.digest}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the file name and the digest that `state_dict` returned."""
        # A checkpoint from elsewhere must not name a file outside of the folder.
        self.file = self.folder / Path(state["file"]).name if state["file"] else None
        self.digest = state["digest"]


def trained_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return the trainable parameters and the buffers by name; tied parameters occur once."""
    trained = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}
    # Unlike `state_dict`, this includes buffers that are not persistent.
    return trained | dict(model.named_buffers())


@torch.no_grad()
def copy_tensors(tensors: Iterable[tuple[str, Tensor]], model: nn.Module) -> None:
    """Copy unsharded tensors into the parameters and buffers with the same names."""
    trained = trained_tensors(model)
    for name, value in tensors:
        trained[name].copy_(shard_like(value, trained[name]))
