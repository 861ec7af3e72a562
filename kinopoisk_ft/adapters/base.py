"""The interface of adapters, and the rule that newly initialized weights always train."""

from __future__ import annotations

from kinopoisk_ft.models.network import Adapted, Network


class Adapter:
    """Base class of the objects that the files of the group `adapter` build.

    Args:
        lr: learning rate of the weights that the adapter trains.
    """

    # Whether weights of the base stay frozen, which makes no sense on a random base.
    freezes = True
    # Whether the adapter is saved without its base, so that a base without a checkpoint must be
    # saved separately.
    needs_saved_base = False

    def __init__(self, *, lr: float) -> None:
        self.lr = lr

    def apply(self, network: Network) -> Adapted:
        """Prepare the module of a network for training.

        Raises:
            UserError: the adapter does not support this network.
        """
        raise NotImplementedError


def train_fresh(network: Network) -> Adapted:
    """Make all newly initialized weights and the complete modules of the head trainable."""
    for name, parameter in network.module.named_parameters():
        if name in network.fresh or any(name.startswith(f"{head}.") for head in network.head):
            parameter.requires_grad_(True)
    return Adapted(network.module, network.fresh)
