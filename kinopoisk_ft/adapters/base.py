"""What an adapter returns, and the rule that random weights never stay frozen."""

from __future__ import annotations

from typing import Protocol

from kinopoisk_ft.models.network import Adapted, Network


class Adapter(Protocol):
    """What a file of the group `adapter` builds."""

    lr: float

    def apply(self, network: Network) -> Adapted:
        """Return the module to train; raises UserError if it cannot work with this network."""
        ...


def train_fresh(network: Network) -> Adapted:
    """Let fresh weights train wherever they lie, and the head's modules whole."""
    for name, parameter in network.module.named_parameters():
        if name in network.fresh or any(name.startswith(f"{head}.") for head in network.head):
            parameter.requires_grad_(True)
    return Adapted(network.module, network.fresh)
