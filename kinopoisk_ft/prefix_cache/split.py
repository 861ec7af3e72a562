"""The layers that an adapter leaves as they are, run apart from those that train.

The upper part is run by the model's own forward: for the length of one call the embeddings hand
over given states and the list of blocks starts at the cut, so that masks, pooling, head and
adapters take part as always. Between calls the model is whole.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from kinopoisk_ft.errors import UserError
from kinopoisk_ft.models.network import (
    TOLERANCE,
    Network,
    blocks_of,
    outputs_of,
    parameters_behind,
    replaced,
)
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
            return {self.seam.backbone: _Given(self.network.layout.backbone_output(hidden))}
        given = dict.fromkeys(self.network.embeddings, _Given(hidden))
        return {**given, self.network.layers: nn.ModuleList(self._blocks[self.seam.layer :])}


class _Given(nn.Module):
    """Answers every call with the same value."""

    def __init__(self, value: Any) -> None:
        super().__init__()
        self.value = value

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.value


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


log = logging.getLogger(__name__)

WHERE = "trainer.prefix_cache"
OFF = "trainer.prefix_cache=off"


def find_prefix(network: Network, module: nn.Module, batch: dict[str, Tensor]) -> FrozenPrefix:
    """Cut a network as high, and keep as little of a review, as gives the same logits.

    What is frozen is read from the graph of a forward pass, not from names: a block is below the
    cut if nothing that trains stands behind its output. Leaves the model in evaluation mode.

    Args:
        module: the network with its adapter.
        batch: input_ids and attention_mask of a few reviews, short and long, to try it on.

    Raises:
        UserError: the first block depends on what trains, or the model cannot be cut.
    """
    if network.pooling == "last_position":
        raise UserError(
            "pooling 'last_position' reads the pads of a batch, and no cache holds them",
            where=WHERE,
            fix=f"use model.pooling=last, or {OFF}",
        )
    module.eval()
    depth, backbone = _frozen(network, module, batch)
    for seam in _seams(network, depth, backbone):
        prefix = FrozenPrefix(network, module, seam)
        if _agrees(prefix, batch):
            return prefix
    raise UserError(
        f"this {type(network.module).__name__} cannot be started at layer {depth}: from the states "
        "there it does not come to its own logits",
        where=WHERE,
        fix=f"use {OFF}",
    )


def _frozen(network: Network, module: nn.Module, batch: dict[str, Tensor]) -> tuple[int, str]:
    """Return how many blocks are frozen with all below them, and the backbone's name if it is."""
    blocks = blocks_of(network)
    backbone = network.layout.backbone
    body = [network.module.get_submodule(backbone)] if backbone else []
    with torch.enable_grad(), outputs_of([*blocks, *body]) as outputs:
        module(**batch)
    depth = next((i for i, b in enumerate(blocks) if outputs[b].requires_grad), len(blocks))
    if depth == 0:
        behind = parameters_behind(outputs[blocks[0]])
        lowest = next(name for name, p in module.named_parameters() if p in behind)
        raise UserError(
            f"no layer can be run once and kept: '{lowest}' trains, and the first layer needs it",
            where=WHERE,
            fix="use an adapter that leaves the first layers as they are (adapter=freeze, "
            f"adapter=head, LoRA with adapter.config.layers_to_transform), or {OFF}",
        )
    frozen = bool(body) and not outputs[body[0]].requires_grad
    return depth, backbone if frozen else ""


def _seams(network: Network, depth: int, backbone: str) -> Iterator[Seam]:
    """Yield where the network may be cut, the smallest file first."""
    if backbone:
        yield Seam(depth, backbone, network.pooling)
    if depth == len(blocks_of(network)):
        yield Seam(depth, pooling=network.pooling if network.layout.backbone else "cls")
    yield Seam(depth)


def _agrees(prefix: FrozenPrefix, batch: dict[str, Tensor]) -> bool:
    """Return whether the kept states lead to the whole model's logits."""
    mask = batch["attention_mask"]
    with torch.no_grad():
        whole = prefix.module(**batch).logits
        states = prefix.states(**batch)
        if not prefix.pooled:
            states = torch.where(mask[..., None] != 0, states, 0)  # pads are not kept
        try:
            resumed = prefix.resume(states, mask).logits
        except (RuntimeError, ValueError, TypeError, AttributeError, NameError) as error:
            log.info("%s does not work here: %s", prefix.seam, error)
            return False
    return bool((resumed - whole).abs().max() <= TOLERANCE * whole.abs().max())
