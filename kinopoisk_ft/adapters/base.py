"""Define the base class of adapters."""

from __future__ import annotations

from kinopoisk_ft.models.network import Adapted, Network


class Adapter:
    """Base class of adapters.

    Args:
        lr: learning rate. If `trainer.head_lr` is set, newly initialized weights of the network use
            `trainer.head_lr`.
    """

    # Whether weights of the base model stay frozen. If they are random, a warning is logged.
    freezes = True
    # Whether the saved adapter lacks the base model. A base with random weights is then also saved.
    needs_saved_base = False
    # FLOPs of a training step for each weight and token: 2 forward, 2 for the gradients of the
    # activations, and 2 for the gradients of trained weights.
    flops_per_weight = 4

    def __init__(self, *, lr: float) -> None:
        self.lr = lr

    def count_forward_blocks(self, blocks: int) -> int:
        """Return the number of leading blocks, out of `blocks`, that need no backward pass."""
        return 0

    def check_gradient_checkpointing(self) -> None:
        """Raise UserError if this adapter does not work with gradient checkpointing."""

    def apply(self, network: Network) -> Adapted:
        """Prepare a network for training.

        Raises:
            UserError: the adapter does not support this network.
        """
        raise NotImplementedError


def train_fresh(network: Network) -> Adapted:
    """Make the head and all newly initialized weights trainable."""
    for name, parameter in network.module.named_parameters():
        # With the dot, the head `score` does not match a module such as `scores`.
        if name in network.fresh or any(name.startswith(f"{head}.") for head in network.head):
            parameter.requires_grad_(True)
    return Adapted(network.module, network.fresh)
