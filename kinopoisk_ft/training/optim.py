"""Which parameters decay and at what rate each group learns."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

# The state matrix and skip of a selective scan live on a log or unit scale; IA3 scales start at
# one: decay pulls all of them to a place that means something else.
NO_DECAY = frozenset({"A_log", "D", "ia3_l"})


def decays(name: str, parameter: nn.Parameter) -> bool:
    """Return whether weight decay applies: to matrices, not to biases, norms and NO_DECAY."""
    return parameter.ndim > 1 and NO_DECAY.isdisjoint(name.split("."))


def param_groups(
    model: nn.Module,
    fresh: Iterable[str],
    *,
    lr: float,
    head_lr: float | None,
    weight_decay: float,
) -> list[dict[str, Any]]:
    """Return optimizer groups of the trainable parameters: (fresh or not) x (decaying or not).

    Args:
        fresh: names of parameters that start from random values; they learn at `head_lr`.
    """
    fresh = set(fresh)
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((name in fresh, decays(name, parameter)), []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": head_lr if is_fresh and head_lr is not None else lr,
            "weight_decay": weight_decay if decaying else 0.0,
        }
        for (is_fresh, decaying), parameters in groups.items()
    ]


def make_scheduler(
    optimizer: Optimizer,
    schedule: Callable[..., float],
    warmup: int,
    total: int,
    place: Callable[[int], int],
) -> LambdaLR:
    """Return a scheduler that multiplies each group's rate by `schedule(place, warmup, total)`.

    Args:
        place: of an optimizer step, in the unit of `warmup` and `total`.
    """
    return LambdaLR(optimizer, lambda step: schedule(place(step), warmup=warmup, total=total))
