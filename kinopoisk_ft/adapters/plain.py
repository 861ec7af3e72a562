"""Adapters that only choose which of the network's own weights train."""

from __future__ import annotations

from kinopoisk_ft.adapters.audit import check_frozen, trainable_below
from kinopoisk_ft.adapters.base import Adapter, train_fresh
from kinopoisk_ft.errors import UserError
from kinopoisk_ft.models.network import Adapted, Network, blocks_of


class Full(Adapter):
    """Every weight trains, except those that the architecture keeps fixed."""

    freezes = False

    def apply(self, network: Network) -> Adapted:
        """Return the module unchanged."""
        return Adapted(network.module, network.fresh)


class Freeze(Adapter):
    """Freeze the embeddings and the first `layers` blocks; the weights above train."""

    def __init__(self, *, layers: int, lr: float) -> None:
        super().__init__(lr=lr)
        self.layers = layers

    def apply(self, network: Network) -> Adapted:
        """Freeze all weights that the states at the cut depend on, whatever their names.

        Raises:
            UserError: there are fewer layers, or something below the cut would train.
        """
        blocks = blocks_of(network)
        if not 0 <= self.layers <= len(blocks):
            raise UserError(
                f"cannot freeze {self.layers} layers: the model has {len(blocks)}",
                where="adapter.layers",
                fix=f"give a number from 0 to {len(blocks)}",
            )
        for name in network.embeddings:
            network.module.get_submodule(name).requires_grad_(False)
        for block in blocks[: self.layers]:
            block.requires_grad_(False)
        # The rest below the cut: positions, token types, projections, biases of relative attention.
        for parameter in trainable_below(network, self.layers):
            parameter.requires_grad_(False)
        adapted = train_fresh(network)
        check_frozen(network, self.layers)
        return adapted


class Head(Adapter):
    """Only the head, and whatever else has no trained weights yet, trains."""

    def apply(self, network: Network) -> Adapted:
        """Freeze all but fresh weights."""
        network.module.requires_grad_(False)
        return train_fresh(network)


class BitFit(Adapter):
    """Biases and the head train (Ben Zaken, Ravfogel & Goldberg, 2022, arXiv 2106.10199)."""

    def apply(self, network: Network) -> Adapted:
        """Freeze everything except biases and fresh weights."""
        for name, parameter in network.module.named_parameters():
            if name.split(".")[-1] != "bias":
                parameter.requires_grad_(False)
        return train_fresh(network)
