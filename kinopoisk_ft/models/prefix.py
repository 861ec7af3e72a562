"""The layers that an adapter leaves as they are, run apart from those that train.

The upper part is run by the model's own forward: for the length of one call the embeddings hand
over given states and the list of blocks starts at the cut, so that masks, pooling, head and
adapters take part as always. Between calls the model is whole.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.modeling_outputs import BaseModelOutput

from kinopoisk_ft.errors import UserError
from kinopoisk_ft.models.graph import outputs_of, parameters_behind, replaced
from kinopoisk_ft.models.network import Network
from kinopoisk_ft.models.pooling import pool

AFTERWARDS = ("label", "dropout")  # in a config's keys: no matter below the head, in evaluation
FEW = 8  # tokens


@dataclass(frozen=True)
class Seam:
    """Where a network is cut, and what of a review is kept there.

    Args:
        layer: number of blocks below the cut.
        backbone: the module whose output is kept instead of a block's, with what follows the
            last block; "" for a block's.
        pooling: how a review's states become one vector; "" where those of all tokens are kept.
    """

    layer: int
    backbone: str = ""
    pooling: str = ""


class FrozenPrefix:
    """A network below and above a seam."""

    def __init__(self, network: Network, module: nn.Module, seam: Seam) -> None:
        self.network, self.module, self.seam = network, module, seam
        self._blocks = blocks_of(network)

    def states(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Map ids and mask (batch, length) to what is kept: (batch, length or 1, d_model)."""
        if self.seam.backbone:
            last = self.network.module.get_submodule(self.seam.backbone)
        else:
            last = self._blocks[self.seam.layer - 1]
        below = {self.network.layers: nn.ModuleList(self._blocks[: self.seam.layer])}
        with replaced(self.network.module, below), outputs_of([last]) as outputs:
            self.module(input_ids=input_ids, attention_mask=attention_mask)
        hidden = outputs[last]
        return pool(hidden, attention_mask, self.seam.pooling)[:, None] if self.pooled else hidden

    def resume(self, hidden: Tensor, attention_mask: Tensor) -> Any:
        """Return the model's output from kept states and the mask (batch, length) on."""
        mask = attention_mask[:, : hidden.shape[1]]
        # Nothing reads these ids: they say how many positions there are.
        with replaced(self.network.module, self._above(hidden)):
            return self.module(input_ids=mask, attention_mask=mask)

    @property
    def pooled(self) -> bool:
        """Whether a review is kept as one vector."""
        return bool(self.seam.pooling)

    def digest(self, batch: dict[str, Tensor]) -> str:
        """Return a SHA-256 of all that determines the states, but for the ids: see `_used`."""
        config = next((c for m in self.network.module.modules() if (c := _config(m))), {})
        text = f"{self.seam} {type(self.network.module).__name__} {sorted(config.items())}"
        found = hashlib.sha256(text.encode())
        for name, value in self._used(batch).items():
            found.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            raw = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            found.update(raw.numpy().data)
        return found.hexdigest()

    def _used(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the parameters that the states depend on, and all buffers, by name."""
        # A few tokens show it: the graph of whole reviews would hold all their activations.
        few = {name: value[:1, :FEW] for name, value in batch.items()}
        parameters = dict(self.network.module.named_parameters())
        frozen = [p for p in parameters.values() if p.is_floating_point() and not p.requires_grad]
        for parameter in frozen:
            parameter.requires_grad_(True)
        try:
            with torch.enable_grad():
                behind = parameters_behind(self.states(**few))
        finally:
            for parameter in frozen:
                parameter.requires_grad_(False)
        used = {n: p for n, p in parameters.items() if p in behind or not p.is_floating_point()}
        return used | dict(self.network.module.named_buffers())

    def _above(self, hidden: Tensor) -> dict[str, nn.Module]:
        """Return the stand-ins with which the model starts at the seam."""
        if self.seam.backbone:
            whole = self.network.kind == "mamba"
            return {
                self.seam.backbone: _Given(
                    hidden if whole else BaseModelOutput(last_hidden_state=hidden)
                )
            }
        given = dict.fromkeys(self.network.embeddings, _Given(hidden))
        return {**given, self.network.layers: nn.ModuleList(self._blocks[self.seam.layer :])}


class _Given(nn.Module):
    """Answers every call with the same value."""

    def __init__(self, value: Any) -> None:
        super().__init__()
        self.value = value

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.value


def blocks_of(network: Network) -> list[nn.Module]:
    """Return the blocks, first block first.

    Raises:
        UserError: the architecture has no list of blocks.
    """
    if not network.layers:
        model = type(network.module).__name__
        raise UserError(
            f"the layers of this {model} cannot be frozen one by one: they share weights or do not "
            "lie in one list",
            where="model.name",
            fix="use another adapter (none, head, bitfit, lora) and trainer.prefix_cache=off",
        )
    return list(network.module.get_submodule(network.layers).children())


def _config(module: nn.Module) -> dict[str, Any]:
    """Return what a module's config says of its layers: labels and paths have no part in it."""
    found = getattr(module, "config", None) or getattr(module, "mamba_config", None)
    if not isinstance(found, PreTrainedConfig):
        return {}
    return {
        key: value
        for key, value in found.to_dict().items()
        if not key.startswith(("_", "architectures")) and not any(w in key for w in AFTERWARDS)
    }
