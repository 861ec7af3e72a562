"""Define adapters that add no weights."""

from __future__ import annotations

from kinopoisk_ft.adapters.audit import find_trainable_below
from kinopoisk_ft.adapters.base import Adapter, train_fresh
from kinopoisk_ft.errors import UserError
from kinopoisk_ft.models.network import Adapted, Network, list_blocks


class Full(Adapter):
    """Trains all weights, except weights that the architecture keeps fixed."""

    freezes = False
    flops_per_weight = 6

    def apply(self, network: Network) -> Adapted:
        """Return the module unchanged."""
        return Adapted(network.module, network.fresh)


class Freeze(Adapter):
    """Freezes the embeddings and the first `layers` blocks, and trains all other weights."""

    # This is the cost of the trained blocks. `count_forward_blocks` leaves out the frozen ones.
    flops_per_weight = 6

    def __init__(self, *, layers: int, lr: float) -> None:
        super().__init__(lr=lr)
        self.layers = layers

    def count_forward_blocks(self, blocks: int) -> int:
        """Return the number of frozen blocks.

        Raises:
            UserError: the model has fewer than `layers` blocks.
        """
        if not 0 <= self.layers <= blocks:
            raise UserError(
                f"cannot freeze {self.layers} layers: the model has {blocks}",
                where="adapter.layers",
                fix=f"set adapter.layers to a number from 0 to {blocks}",
            )
        return self.layers

    def apply(self, network: Network) -> Adapted:
        """Freeze the first `layers` blocks and all pretrained weights below them.

        Raises:
            UserError: the model has fewer than `layers` blocks, or one of the weights to freeze
                belongs to the head, which is trained.
        """
        blocks = list_blocks(network)
        frozen_blocks = blocks[: self.count_forward_blocks(len(blocks))]
        # In some models, the modules of the embeddings and blocks do not contain all weights below
        # the boundary: positions, token types, projections, biases of relative attention.
        frozen = find_trainable_below(network, self.layers)
        embeddings = [network.module.get_submodule(name) for name in network.embeddings]
        for part in (*embeddings, *frozen_blocks):
            frozen |= set(part.parameters())
        for parameter in frozen:
            parameter.requires_grad_(False)
        adapted = train_fresh(network)
        # A head that contains some of these weights makes them trainable again.
        trained = [
            name
            for name, parameter in network.module.named_parameters()
            if parameter in frozen and parameter.requires_grad and name not in network.fresh
        ]
        if trained:
            raise UserError(
                f"adapter.layers={self.layers} should freeze the embeddings and the first "
                f"{self.layers} layers, but {len(trained)} of their weights would still be "
                f"trained: {trained[0]}, …",
                where="adapter.layers",
                fix="use adapter=head, lora or none with this model",
            )
        return adapted


class Head(Adapter):
    """Trains only the head and newly initialized weights."""

    def count_forward_blocks(self, blocks: int) -> int:
        """Return `blocks`, because all blocks are frozen."""
        return blocks

    def check_gradient_checkpointing(self) -> None:
        """Raise UserError: frozen layers store no activations, so checkpointing has no effect."""
        raise UserError(
            "gradient checkpointing would have no effect, because adapter=head freezes all layers",
            where="trainer.gradient_checkpointing",
            fix="use trainer.gradient_checkpointing=false",
        )

    def apply(self, network: Network) -> Adapted:
        """Freeze all weights except the head and newly initialized weights."""
        network.module.requires_grad_(False)
        return train_fresh(network)


class BitFit(Adapter):
    """Trains biases and the head (Ben Zaken et al., 2022, https://arxiv.org/abs/2106.10199)."""

    def apply(self, network: Network) -> Adapted:
        """Freeze all weights except biases, the head and newly initialized weights.

        Raises:
            UserError: there are no biases below the head.
        """
        names = [name for name, _ in network.module.named_parameters()]
        if not any(n.startswith(f"{network.body}.") and n.endswith(".bias") for n in names):
            raise UserError(
                "the layers below the head have no biases (as in ModernBERT), so this adapter "
                "would train only the head",
                where="adapter=bitfit",
                fix="use adapter=head to train only the head, or adapter=lora or none",
            )
        for name, parameter in network.module.named_parameters():
            if name.split(".")[-1] != "bias":
                parameter.requires_grad_(False)
        return train_fresh(network)
