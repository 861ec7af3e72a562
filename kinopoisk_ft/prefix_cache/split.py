"""Split a network into frozen lower layers and trained upper layers.

To run only the upper layers, the whole model is called, and each frozen layer returns the cached
activations. Masks, positions, pooling, head and adapters work as usual.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from kinopoisk_ft.errors import UserError
from kinopoisk_ft.models.inspection import (
    TOLERANCE,
    find_floats,
    find_parameters_in_graph,
    record_outputs,
    replace_forward,
    run_example_batch,
)
from kinopoisk_ft.models.network import Network, list_blocks
from kinopoisk_ft.models.pooling import find_filled_windows, pool

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
        outputs: number of items in the tuple that a block returns; 0 if it returns a tensor.
        runs_first: whether the frozen first block still runs, because the upper layers also need
            its other outputs. T5's first block computes the position biases of all blocks.
    """

    network: Network
    module: nn.Module
    layer: int
    backbone: str = ""
    pooling: str = ""
    outputs: int = 0
    runs_first: bool = False

    def __str__(self) -> str:
        place = self.backbone or f"layer {self.layer}"
        return f"{self.pooling or 'every token'} of {place}"

    def run_lower(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Run the frozen layers on token ids and mask (batch, length).

        Returns:
            Activations (batch, length, d_model), or (batch, 1, d_model) if `pooling` is set.
        """
        blocks = list_blocks(self.network)
        last = self._backbone if self.backbone else blocks[self.layer - 1]
        with (
            record_outputs([last]) as outputs,
            # The blocks above the split only return the output of the last frozen block.
            replace_forward(blocks[self.layer :], lambda *_, **__: self._pack(outputs[last])),
        ):
            self.module(input_ids=input_ids, attention_mask=attention_mask)
        # Longformer and Funnel add padding.
        activations = outputs[last][:, : attention_mask.shape[1]]
        if not self.pooling:
            return activations
        return pool(activations, attention_mask, self.pooling)[:, None]

    def run_upper(self, activations: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Any:
        """Run the layers above the split on activations that `run_lower` returned.

        With windows, activations are (batch, windows, length, d_model), and ids and mask are
        (batch, windows, length).

        Returns:
            The output of the whole model.
        """
        length = activations.shape[-2]
        # A pooled vector has only one position, so the mask is reduced to the first token.
        attention_mask = attention_mask[..., :length]
        if attention_mask.dim() == 3:
            # The module removes empty windows from the mask, so remove their activations as well.
            activations = activations[find_filled_windows(attention_mask)]
        with self._skip_lower(activations):
            return self.module(input_ids=input_ids[..., :length], attention_mask=attention_mask)

    @property
    def _backbone(self) -> nn.Module:
        return self.network.module.get_submodule(self.backbone)

    def _pack(self, hidden: Tensor, others: Sequence[Any] | None = None) -> Any:
        """Return hidden states in the format of a block's output, a tensor or a tuple.

        Args:
            others: the other items of the tuple; None items if not given.
        """
        if self.outputs == 0:
            return hidden
        return (hidden, *(others or [None] * (self.outputs - 1)))

    @contextmanager
    def _skip_lower(self, activations: Tensor) -> Iterator[None]:
        if self.backbone:
            output = self.network.layout.backbone_output(activations)
            with replace_forward([self._backbone], lambda *_, **__: output):
                yield
            return
        blocks = list_blocks(self.network)[: self.layer]
        embeddings = [self.network.module.get_submodule(n) for n in self.network.embeddings]
        training = [part.training for part in embeddings]
        # Get the method before it is replaced, because `run_first` calls it.
        original: Any = blocks[0].forward
        others: list[Any] = []

        def skip(*args: Any, **kwargs: Any) -> Any:
            # Longformer adds padding.
            # The first float tensor of the arguments is the hidden states (batch, length, d_model).
            more = find_floats((args, kwargs))[0].shape[1] - activations.shape[1]
            hidden = nn.functional.pad(activations, (0, 0, 0, more)) if more else activations
            return self._pack(hidden, others)

        def run_first(*args: Any, **kwargs: Any) -> Any:
            others[:] = original(*args, **kwargs)[1:]
            return skip(*args, **kwargs)

        try:
            for part in embeddings:
                # Frozen layers run without dropout.
                part.eval()
            with replace_forward(blocks, skip, run_first if self.runs_first else None):
                yield
        finally:
            for part, mode in zip(embeddings, training, strict=True):
                part.train(mode)

    def digest(self, batch: dict[str, Tensor]) -> str:
        """Return a SHA-256 digest of the weights and settings that affect the activations.

        A forward pass on `batch` shows which weights these are. The digest does not depend on the
        values in `batch`.
        """
        config = _read_config(self.network.module)
        # Earlier versions called this class Seam. The text stays, so that their files are found.
        point = f"Seam(layer={self.layer}, backbone={self.backbone!r}, pooling={self.pooling!r})"
        text = f"{point} {type(self.network.module).__name__} {sorted(config.items())}"
        found = hashlib.sha256(text.encode())
        for name, value in self._tensors_behind(batch).items():
            # Tensors with other dtypes or shapes may consist of the same bytes.
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
        # Buffers do not appear in the graph, so include all of them.
        return used | dict(self.network.module.named_buffers())


def _read_config(module: nn.Module) -> dict[str, Any]:
    """Return the settings that affect activations, from the first submodule that has a config."""
    names = ("config", "mamba_config")
    found = (getattr(part, name, None) for part in module.modules() for name in names)
    config = next((c for c in found if isinstance(c, PreTrainedConfig)), None)
    return {
        key: value
        for key, value in (config.to_dict() if config else {}).items()
        if not key.startswith(("_", "architectures")) and not any(w in key for w in NO_EFFECT)
    }


def check_split(network: Network, module: nn.Module) -> SplitNetwork:
    """Find the layers that an adapter leaves frozen, and check that their output can be cached.

    Args:
        module: the network with its adapter, in evaluation mode; it may be on the meta device.

    Returns:
        The split above all frozen layers.

    Raises:
        UserError: the first block depends on a trained parameter, the blocks pool adjacent tokens,
            training skips random layers, or the head reads padding.
    """
    if network.pooling == "last_position":
        raise UserError(
            "model.pooling=last_position reads the padding tokens of a batch, and the cache does "
            "not contain their activations",
            where=WHERE,
            fix=f"set model.pooling=last or {OFF}",
        )
    if _read_config(network.module).get("encoder_layerdrop"):
        raise UserError(
            "the prefix cache does not work with LayerDrop, which skips random layers in training",
            where=WHERE,
            fix=f"set encoder_layerdrop to 0 in the config.json of the checkpoint, or set {OFF}",
        )
    name = network.layout.backbone
    # If `name` is "", `get_submodule` returns the whole module.
    trained = any(p.requires_grad for p in network.module.get_submodule(name).parameters())
    blocks = network.module.get_submodule(network.layers) if network.layers else nn.ModuleList()
    # Funnel has nested lists. If all of its blocks are frozen, the final output is cached.
    if trained and any(isinstance(part, nn.ModuleList) for part in blocks.children()):
        raise UserError(
            f"the prefix cache does not work with {type(network.module).__name__}, because its "
            "blocks pool adjacent tokens",
            where=WHERE,
            fix=f"use adapter=head, or set {OFF}",
        )
    return _find_frozen(network, module)


def find_split(network: Network, module: nn.Module, batch: dict[str, Tensor]) -> SplitNetwork:
    """Split a network into frozen layers, whose output can be cached, and trained layers.

    The cache stores one pooled vector per review if all layers are frozen and these vectors give
    the same logits for `batch` as the whole model. Otherwise, it stores one vector per token. The
    model is left in evaluation mode.

    Args:
        module: the network with its adapter.
        batch: input_ids and attention_mask of a few short and long reviews.

    Raises:
        UserError: `check_split` fails, or cached activations do not give the same logits.
    """
    whole = check_split(network, module.eval())
    for split in _candidates(whole):
        if _gives_same_logits(split, batch):
            return split
    raise UserError(
        f"the prefix cache does not work with {type(network.module).__name__}: with cached "
        f"activations, the layers above layer {whole.layer} do not give the model's logits",
        where=WHERE,
        fix=f"set {OFF}",
    )


def _find_frozen(network: Network, module: nn.Module) -> SplitNetwork:
    """Return the highest split that has only frozen blocks below it.

    If the whole backbone is frozen, the split is above the backbone.
    """
    blocks = list_blocks(network)
    name = network.layout.backbone
    backbone = [network.module.get_submodule(name)] if name else []
    # This hook keeps the whole tuple that a block returns; `record_outputs` keeps the first item.
    raw: list[Any] = []
    handle = blocks[0].register_forward_hook(lambda _, __, output: raw.append(output))
    with torch.enable_grad(), record_outputs([*blocks, *backbone]) as outputs:
        run_example_batch(module)
    handle.remove()
    # The output of a block requires gradients if a weight in this block or below is trained.
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
    count = len(raw[0]) if isinstance(raw[0], tuple) else 0
    return SplitNetwork(network, module, layer, name if is_frozen else "", outputs=count)


def _candidates(whole: SplitNetwork) -> Iterator[SplitNetwork]:
    # The candidate with the smallest cache comes first. If the backbone or all blocks are frozen,
    # one vector per review may be enough.
    pooling = whole.network.pooling
    if whole.backbone:
        yield replace(whole, pooling=pooling)
    blocks = replace(whole, backbone="")
    if whole.layer == len(list_blocks(whole.network)):
        # Without a backbone, the model has its own head, which may read only the first token.
        yield replace(blocks, pooling=pooling if whole.network.layout.backbone else "cls")
    yield blocks
    if whole.outputs:
        yield replace(blocks, runs_first=True)


def _gives_same_logits(split: SplitNetwork, batch: dict[str, Tensor]) -> bool:
    mask = batch["attention_mask"]
    with torch.no_grad():
        expected = split.module(**batch).logits
        activations = split.run_lower(**batch)
        if not split.pooling and activations.shape[:2] != mask.shape:
            # Funnel's blocks pool adjacent tokens.
            return False
        if not split.pooling:
            # The activations of padding tokens are not cached, and batches contain zeros there.
            activations = torch.where(mask[..., None] != 0, activations, 0)
        try:
            logits = split.run_upper(activations, **batch).logits
        except (RuntimeError, ValueError, TypeError, AttributeError, NameError) as error:
            name = type(split.module).__name__
            log.info("%s cannot continue from cached activations (%s): %s", name, split, error)
            return False
    return bool((logits - expected).abs().max() <= TOLERANCE * expected.abs().max())
