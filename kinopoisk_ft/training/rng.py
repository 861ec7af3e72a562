"""Where PyTorch's generators stand, and how to put them there again."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

DEVICES: dict[str, Any] = {"cuda": torch.cuda, "mps": torch.mps}


def get_rng_states(device: torch.device) -> dict[str, Tensor]:
    """Return the states of the CPU's generator and of the device's own, by the device's type."""
    states = {"cpu": torch.get_rng_state()}
    if device.type in DEVICES:
        states[device.type] = DEVICES[device.type].get_rng_state()
    return states


def set_rng_states(states: dict[str, Tensor]) -> None:
    """Draw on from where `get_rng_states` was called."""
    for device, state in states.items():
        if device == "cpu":
            torch.set_rng_state(state)
        else:
            DEVICES[device].set_rng_state(state)
