"""Adapters that only choose which of the network's own weights train."""

from __future__ import annotations

from kinopoisk_ft.adapters.base import Adapted, train_fresh
from kinopoisk_ft.errors import UserError
from kinopoisk_ft.models.network import Network


class Full:
    """Every weight trains."""

    def __init__(self, *, lr: float) -> None:
        self.lr = lr

    def apply(self, network: Network) -> Adapted:
        """Return the module as it is."""
        network.module.requires_grad_(True)
        return Adapted(network.module, network.fresh)


class Freeze:
    """Embeddings and the first `layers` blocks stay as they are; what lies above trains."""

    def __init__(self, *, layers: int, lr: float) -> None:
        self.layers, self.lr = layers, lr

    def apply(self, network: Network) -> Adapted:
        """Freeze; raises UserError for more layers than there are."""
        blocks = list(network.module.get_submodule(network.layers).children())
        if not 0 <= self.layers <= len(blocks):
            raise UserError(
                f"cannot freeze {self.layers} layers: the model has {len(blocks)}",
                where="adapter.layers",
                fix=f"give a number from 0 to {len(blocks)}",
            )
        network.module.requires_grad_(True)
        for name in network.embeddings:
            network.module.get_submodule(name).requires_grad_(False)
        for block in blocks[: self.layers]:
            block.requires_grad_(False)
        return train_fresh(network)


class Head:
    """Only the head, and whatever else has no trained weights yet, trains."""

    def __init__(self, *, lr: float) -> None:
        self.lr = lr

    def apply(self, network: Network) -> Adapted:
        """Freeze all but fresh weights."""
        network.module.requires_grad_(False)
        return train_fresh(network)


class BitFit:
    """Biases and the head train (Ben Zaken, Ravfogel & Goldberg, 2022, arXiv 2106.10199)."""

    def __init__(self, *, lr: float) -> None:
        self.lr = lr

    def apply(self, network: Network) -> Adapted:
        """Freeze all but biases and fresh weights."""
        for name, parameter in network.module.named_parameters():
            parameter.requires_grad_(name.split(".")[-1] == "bias")
        return train_fresh(network)
