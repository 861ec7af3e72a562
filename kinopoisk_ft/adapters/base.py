"""What an adapter returns, and the rule that random weights never stay frozen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import nn

from kinopoisk_ft.models.network import Network


@dataclass(frozen=True)
class Adapted:
    """A module ready to train.

    Args:
        fresh: names of parameters with random values.
        targets: kinds and numbers of the modules that PEFT adapts, for example "query x12".
    """

    module: nn.Module
    fresh: set[str]
    is_peft: bool = False
    targets: str = ""


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
