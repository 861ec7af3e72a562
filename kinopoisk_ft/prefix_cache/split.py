"""Split a network into frozen lower layers and trained upper layers.

To run the upper layers, the whole model is called, but some modules are replaced during the call.
For example, the embeddings return the cached activations. Masks, pooling, head and adapters work as
usual.
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
from kinopoisk_ft.models.window_pooling import find_filled_windows

log = logging.getLogger(__name__)

WHERE = "trainer.prefix_cache"
OFF = "trainer.prefix_cache=off"
# Config keys that contain these words do not affect the frozen layers in evaluation mode.
NO_EFFECT = ("label", "dropout")


@dataclass(frozen=True)
class SplitNetwork:
    """A network split into frozen lower layers and trained upper layers.

    Args:
        module: the network with its adapter.
        layer: number of frozen blocks, counted from the first one.
        backbone: if all blocks are frozen, the name of the module whose output is cached. Otherwise
            "", and the output of the last frozen block is cached.
        pooling: method that reduces a review to one vector before caching. If "", one vector per
            token is cached.
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
        """Run the frozen layers on token ids and mask (batch, length).

        Returns:
            Activations (batch, length, d_model), or (batch, 1, d_model) if `pooling` is set.
        """
        root, blocks = self.network.module, list_blocks(self.network)[: self.layer]
        last = root.get_submodule(self.backbone) if self.backbone else blocks[-1]
        lower = {self.network.layers: nn.ModuleList(blocks)}
        with replace_modules(root, lower), record_outputs([last]) as outputs:
            self.module(input_ids=input_ids, attention_mask=attention_mask)
        if not self.pooling:
            return outputs[last]
        return pool(outputs[last], attention_mask, self.pooling)[:, None]

    def run_upper(self, activations: Tensor, attention_mask: Tensor) -> Any:
        """Run the layers above the split on activations that `run_lower` returned.

        With windows, activations are (batch, windows, length, d_model), and the mask is (batch,
        windows, length).

        Returns:
            The output of the whole model.
        """
        attention_mask = attention_mask[..., : activations.shape[-2]]
        if attention_mask.dim() == 3:
            # The module removes empty windows from the mask, so remove their activations as well.
            activations = activations[find_filled_windows(attention_mask)]
        if self.backbone:
            output = self.network.layout.backbone_output(activations)
            upper: dict[str, nn.Module] = {self.backbone: _Constant(output)}
        else:
            blocks = list_blocks(self.network)[self.layer :]
            upper = dict.fromkeys(self.network.embeddings, _Constant(activations))
            upper[self.network.layers] = nn.ModuleList(blocks)
        with replace_modules(self.network.module, upper):
            # Pass the mask as ids, because no layer reads the ids and only their shape matters.
            return self.module(input_ids=attention_mask, attention_mask=attention_mask)

    def digest(self, batch: dict[str, Tensor]) -> str:
        """Return a SHA-256 digest of the weights and settings that affect the activations.

        batch: any reviews. A forward pass on the reviews finds the weights that affect the
            activations. The digest does not depend on the reviews.
        """
        config = next((c for m in self.network.module.modules() if (c := _config(m))), {})
        # The class used to be called Seam. The same text finds the files of earlier versions.
        point = f"Seam(layer={self.layer}, backbone={self.backbone!r}, pooling={self.pooling!r})"
        text = f"{point} {type(self.network.module).__name__} {sorted(config.items())}"
        found = hashlib.sha256(text.encode())
        for name, value in self._tensors_behind(batch).items():
            found.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            # View the values as bytes, because NumPy does not support bfloat16.
            raw = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            found.update(raw.numpy().data)
        return found.hexdigest()

    def _tensors_behind(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        # One review of eight tokens is enough. The autograd graph of whole reviews would keep all
        # their activations in memory.
        few = {name: value[:1, :8] for name, value in batch.items()}
        parameters = dict(self.network.module.named_parameters())
        # The autograd graph contains only parameters that require gradients, so let the frozen ones
        # require gradients for this forward pass.
        frozen = [p for p in parameters.values() if p.is_floating_point() and not p.requires_grad]
        for parameter in frozen:
            parameter.requires_grad_(True)
        try:
            with torch.enable_grad():
                behind = find_parameters_in_graph(self.run_lower(**few))
        finally:
            for parameter in frozen:
                parameter.requires_grad_(False)
        # Integer parameters, such as quantized weights, cannot require gradients: include all.
        used = {n: p for n, p in parameters.items() if p in behind or not p.is_floating_point()}
        return used | dict(self.network.module.named_buffers())


class _Constant(nn.Module):
    def __init__(self, value: Any) -> None:
        super().__init__()
        self.value = value

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.value


def _config(module: nn.Module) -> dict[str, Any]:
    found = getattr(module, "config", None) or getattr(module, "mamba_config", None)
    if not isinstance(found, PreTrainedConfig):
        return {}
    return {
        key: value
        for key, value in found.to_dict().items()
        if not key.startswith(("_", "architectures")) and not any(w in key for w in NO_EFFECT)
    }


def find_split(network: Network, module: nn.Module, batch: dict[str, Tensor]) -> SplitNetwork:
    """Split a network into frozen layers, whose output can be cached, and trained layers.

    If all layers are frozen and one vector per review gives the same logits for `batch`, only this
    vector is cached. Otherwise, one vector per token is cached. The model is left in evaluation
    mode.

    Args:
        module: the network with its adapter.
        batch: input_ids and attention_mask of a few short and long reviews.

    Raises:
        UserError: the first block depends on a trained parameter, or the logits cannot be computed
            from cached activations.
    """
    if network.pooling == "last_position":
        raise UserError(
            "model.pooling=last_position reads the padding tokens of a batch, and the cache does "
            "not contain their activations",
            where=WHERE,
            fix=f"set model.pooling=last or {OFF}",
        )
    module.eval()
    layer, backbone = _find_frozen(network, module, batch)
    for split in _candidates(network, module, layer, backbone):
        if _gives_same_logits(split, batch):
            return split
    raise UserError(
        f"the prefix cache does not work with {type(network.module).__name__}, because the layers "
        f"above layer {layer} do not compute the same logits from cached activations",
        where=WHERE,
        fix=f"set {OFF}",
    )


def _find_frozen(network: Network, module: nn.Module, batch: Any) -> tuple[int, str]:
    """Return the number of frozen blocks, and the name of the backbone if it is frozen, else ""."""
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
            f"no layer can be cached, because '{lowest}' is trained and the output of the first "
            "layer depends on it",
            where=WHERE,
            fix="use an adapter that freezes the first layers (adapter=freeze, adapter=head, or "
            f"LoRA with adapter.config.layers_to_transform), or set {OFF}",
        )
    is_frozen = bool(backbone) and not outputs[backbone[0]].requires_grad
    return layer, name if is_frozen else ""


def _candidates(
    network: Network, module: nn.Module, layer: int, backbone: str
) -> Iterator[SplitNetwork]:
    # Yield the smallest cache first.
    # If the backbone or all blocks are frozen, one vector per review may be enough.
    if backbone:
        yield SplitNetwork(network, module, layer, backbone, network.pooling)
    if layer == len(list_blocks(network)):
        # Without a backbone, the model has its own head, which may read only the first token.
        pooling = network.pooling if network.layout.backbone else "cls"
        yield SplitNetwork(network, module, layer, pooling=pooling)
    yield SplitNetwork(network, module, layer)


def _gives_same_logits(split: SplitNetwork, batch: dict[str, Tensor]) -> bool:
    mask = batch["attention_mask"]
    with torch.no_grad():
        expected = split.module(**batch).logits
        activations = split.run_lower(**batch)
        if not split.pooling:
            # The activations of padding tokens are not cached, and batches contain zeros there.
            activations = torch.where(mask[..., None] != 0, activations, 0)
        try:
            logits = split.run_upper(activations, mask).logits
        except (RuntimeError, ValueError, TypeError, AttributeError, NameError) as error:
            name = type(split.module).__name__
            log.info("%s cannot continue from cached activations (%s): %s", name, split, error)
            return False
    return bool((logits - expected).abs().max() <= TOLERANCE * expected.abs().max())
