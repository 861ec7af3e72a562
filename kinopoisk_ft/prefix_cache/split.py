"""Split a network into frozen lower layers and an upper part that trains.

The upper part runs through the model's own forward: during one call the embeddings return the
given activations and the list of blocks begins at the split point. Masks, pooling, head and
adapters work as usual, and between calls the model is unchanged.
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
    find_parameters_in_graph,
    list_blocks,
    record_outputs,
    replace_modules,
)
from kinopoisk_ft.models.pooling import pool

log = logging.getLogger(__name__)

WHERE = "trainer.prefix_cache"
OFF = "trainer.prefix_cache=off"
# Config keys with these words have no effect on frozen layers in evaluation mode.
NO_EFFECT = ("label", "dropout")


@dataclass(frozen=True)
class SplitNetwork:
    """A network as two functions, below and above a split point.

    Args:
        module: the network with its adapter.
        layer: number of blocks below the split point.
        backbone: module whose output is cached, with what follows the last block; "" to cache the
            output of a block.
        pooling: how the activations of a review become one vector; "" to cache those of all tokens.
    """

    network: Network
    module: nn.Module
    layer: int
    backbone: str = ""
    pooling: str = ""

    def __str__(self) -> str:
        place = self.backbone or f"layer {self.layer}"
        return f"{self.pooling or 'every token'} of {place}"

    def run_lower(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Map ids and mask (batch, length) to activations (batch, length or 1, d_model)."""
        root, blocks = self.network.module, list_blocks(self.network)[: self.layer]
        last = root.get_submodule(self.backbone) if self.backbone else blocks[-1]
        lower = {self.network.layers: nn.ModuleList(blocks)}
        with replace_modules(root, lower), record_outputs([last]) as outputs:
            self.module(input_ids=input_ids, attention_mask=attention_mask)
        if not self.pooling:
            return outputs[last]
        return pool(outputs[last], attention_mask, self.pooling)[:, None]

    def run_upper(self, activations: Tensor, attention_mask: Tensor) -> Any:
        """Map activations and mask (batch, length) to the model's output."""
        if self.backbone:
            output = self.network.layout.backbone_output(activations)
            upper: dict[str, nn.Module] = {self.backbone: _Constant(output)}
        else:
            blocks = list_blocks(self.network)[self.layer :]
            upper = dict.fromkeys(self.network.embeddings, _Constant(activations))
            upper[self.network.layers] = nn.ModuleList(blocks)
        mask = attention_mask[:, : activations.shape[1]]
        with replace_modules(self.network.module, upper):
            # No layer reads these ids; only their shape counts.
            return self.module(input_ids=mask, attention_mask=mask)

    def digest(self, batch: dict[str, Tensor]) -> str:
        """Return a SHA-256 of everything that determines the activations, except the ids."""
        config = next((c for m in self.network.module.modules() if (c := _config(m))), {})
        # Earlier versions wrote the split point like this; the same text finds their files.
        point = f"Seam(layer={self.layer}, backbone={self.backbone!r}, pooling={self.pooling!r})"
        text = f"{point} {type(self.network.module).__name__} {sorted(config.items())}"
        found = hashlib.sha256(text.encode())
        for name, value in self._tensors_behind(batch).items():
            found.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            raw = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            found.update(raw.numpy().data)
        return found.hexdigest()

    def _tensors_behind(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the parameters that the activations depend on, and all buffers, by name."""
        # Eight tokens are enough; the graph of whole reviews would hold all their activations.
        few = {name: value[:1, :8] for name, value in batch.items()}
        parameters = dict(self.network.module.named_parameters())
        frozen = [p for p in parameters.values() if p.is_floating_point() and not p.requires_grad]
        for parameter in frozen:
            parameter.requires_grad_(True)
        try:
            with torch.enable_grad():
                behind = find_parameters_in_graph(self.run_lower(**few))
        finally:
            for parameter in frozen:
                parameter.requires_grad_(False)
        used = {n: p for n, p in parameters.items() if p in behind or not p.is_floating_point()}
        return used | dict(self.network.module.named_buffers())


class _Constant(nn.Module):
    """Return the same value from every call."""

    def __init__(self, value: Any) -> None:
        super().__init__()
        self.value = value

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.value


def _config(module: nn.Module) -> dict[str, Any]:
    """Return the part of a module's config that describes its layers, without labels and paths."""
    found = getattr(module, "config", None) or getattr(module, "mamba_config", None)
    if not isinstance(found, PreTrainedConfig):
        return {}
    return {
        key: value
        for key, value in found.to_dict().items()
        if not key.startswith(("_", "architectures")) and not any(w in key for w in NO_EFFECT)
    }


def find_split(network: Network, module: nn.Module, batch: dict[str, Tensor]) -> SplitNetwork:
    """Split a network as high, and cache as little of a review, as still gives the same logits.

    The graph of a forward pass shows what is frozen, not names: a block is below the split point
    if its output depends on nothing that trains. Leaves the model in evaluation mode.

    Args:
        module: the network with its adapter.
        batch: input_ids and attention_mask of a few short and long reviews for the comparison.

    Raises:
        UserError: the first block depends on something that trains, or no split gives the logits.
    """
    if network.pooling == "last_position":
        raise UserError(
            "pooling 'last_position' reads the padding of a batch, which is not cached",
            where=WHERE,
            fix=f"use model.pooling=last, or {OFF}",
        )
    module.eval()
    layer, backbone = _find_frozen(network, module, batch)
    for split in _candidates(network, module, layer, backbone):
        if _gives_same_logits(split, batch):
            return split
    raise UserError(
        f"this {type(network.module).__name__} cannot be split at layer {layer}: it does not give "
        "the same logits from the activations there",
        where=WHERE,
        fix=f"use {OFF}",
    )


def _find_frozen(network: Network, module: nn.Module, batch: Any) -> tuple[int, str]:
    """Return the number of frozen blocks, and the backbone's name if all of it is frozen."""
    blocks = list_blocks(network)
    name = network.layout.backbone
    backbone = [network.module.get_submodule(name)] if name else []
    with torch.enable_grad(), record_outputs([*blocks, *backbone]) as outputs:
        module(**batch)
    layer = next((i for i, b in enumerate(blocks) if outputs[b].requires_grad), len(blocks))
    if layer == 0:
        behind = find_parameters_in_graph(outputs[blocks[0]])
        lowest = next(name for name, p in module.named_parameters() if p in behind)
        raise UserError(
            f"no layer can be cached: '{lowest}' trains, and the first layer depends on it",
            where=WHERE,
            fix="use an adapter that leaves the first layers frozen (adapter=freeze, adapter=head, "
            f"LoRA with adapter.config.layers_to_transform), or {OFF}",
        )
    is_frozen = bool(backbone) and not outputs[backbone[0]].requires_grad
    return layer, name if is_frozen else ""


def _candidates(
    network: Network, module: nn.Module, layer: int, backbone: str
) -> Iterator[SplitNetwork]:
    """Yield possible splits, the smallest cache first."""
    if backbone:
        yield SplitNetwork(network, module, layer, backbone, network.pooling)
    if layer == len(list_blocks(network)):
        pooling = network.pooling if network.layout.backbone else "cls"
        yield SplitNetwork(network, module, layer, pooling=pooling)
    yield SplitNetwork(network, module, layer)


def _gives_same_logits(split: SplitNetwork, batch: dict[str, Tensor]) -> bool:
    mask = batch["attention_mask"]
    with torch.no_grad():
        expected = split.module(**batch).logits
        activations = split.run_lower(**batch)
        if not split.pooling:
            # Activations of padding are not cached.
            activations = torch.where(mask[..., None] != 0, activations, 0)
        try:
            logits = split.run_upper(activations, mask).logits
        except (RuntimeError, ValueError, TypeError, AttributeError, NameError) as error:
            log.info("cannot run %s from %s: %s", type(split.module).__name__, split, error)
            return False
    return bool((logits - expected).abs().max() <= TOLERANCE * expected.abs().max())
