"""Where a network can be cut into layers that are run once and layers that train."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from kinopoisk_ft.errors import UserError
from kinopoisk_ft.models.graph import outputs_of, parameters_behind
from kinopoisk_ft.models.network import Network
from kinopoisk_ft.models.prefix import FrozenPrefix, Seam, blocks_of

log = logging.getLogger(__name__)

WHERE = "trainer.prefix_cache"
OFF = "trainer.prefix_cache=off"
# What our own classifiers pool; Hugging Face's take a vector from the last block by themselves.
BACKBONES = {"pooled": "encoder", "mamba": "backbone"}
TOLERANCE = 1e-4  # of the largest logit: both ways do the same sums, wrong vectors are far off


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
    backbone = BACKBONES.get(network.kind, "")
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
        yield Seam(depth, pooling="cls" if network.kind == "hf" else network.pooling)
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
