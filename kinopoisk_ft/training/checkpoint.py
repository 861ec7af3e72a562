"""The best weights of a run, on disk in safetensors."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from kinopoisk_ft.errors import UserError


class BestWeights:
    """Keeps the trainable weights and the buffers of the best evaluation."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "best.safetensors"

    def save(self, model: nn.Module) -> None:
        """Write beside, then rename: an interrupted write leaves the previous best whole."""
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            part = self.file.with_suffix(".part")
            save_file({k: v.contiguous() for k, v in _state(model).items()}, part)
            os.replace(part, self.file)
        except OSError as error:
            raise UserError(
                f"the checkpoint could not be written: {error}",
                where=str(self.file),
                fix="free some space or choose another output_dir",
            ) from error

    @torch.no_grad()
    def restore(self, model: nn.Module) -> None:
        """Copy the saved weights into the model."""
        state = _state(model)
        for name, value in load_file(self.file).items():
            state[name].copy_(value)


def _state(model: nn.Module) -> dict[str, Tensor]:
    """Return what training changes, by name; a tensor shared by two names is kept once."""
    trained = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}
    return trained | dict(model.named_buffers())
