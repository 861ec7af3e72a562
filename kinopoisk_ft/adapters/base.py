"""The interface of adapters, and the rule that random weights never stay frozen."""

from __future__ import annotations

from kinopoisk_ft.models.network import Adapted, Network


class Adapter:
    """Base class of the objects that the files of the group `adapter` build.

    Args:
        lr: learning rate of what the adapter trains.
    """

    # Whether weights of the base stay as they are; those of a random base have learnt nothing.
    freezes = True
    # Whether the adapter is saved apart from its base, which then needs a folder of its own.
    needs_saved_base = False

    def __init__(self, *, lr: float) -> None:
        self.lr = lr

    def apply(self, network: Network) -> Adapted:
        """Return the module to train.

        Raises:
            UserError: the adapter cannot work with this network.
        """
        raise NotImplementedError


def train_fresh(network: Network) -> Adapted:
    """Let fresh weights train wherever they lie, and the head's modules whole."""
    for name, parameter in network.module.named_parameters():
        if name in network.fresh or any(name.startswith(f"{head}.") for head in network.head):
            parameter.requires_grad_(True)
    return Adapted(network.module, network.fresh)
