"""Save and restore the states of PyTorch's random number generators."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# The modules that manage an accelerator's random state and cached memory, by device type.
DEVICES: dict[str, Any] = {"cuda": torch.cuda, "mps": torch.mps}


def get_rng_states(device: torch.device) -> dict[str, Tensor]:
    """Return the random states of the CPU and of `device`, by device type."""
    # NumPy has no state to save, because all its generators in training have explicit seeds.
    states = {"cpu": torch.get_rng_state()}
    if device.type in DEVICES:
        states[device.type] = DEVICES[device.type].get_rng_state()
    return states


def set_rng_states(states: dict[str, Tensor]) -> None:
    """Restore the random states that `get_rng_states` returned."""
    for device, state in states.items():
        if device == "cpu":
            torch.set_rng_state(state)
        else:
            DEVICES[device].set_rng_state(state)
