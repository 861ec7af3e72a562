"""Group parameters by learning rate and weight decay, and build the scheduler."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

# Zero is no neutral value for these parameters, so weight decay would change what they mean: the
# state matrix of a selective scan is stored as a logarithm, its skip and the IA3 scales start at 1.
NO_DECAY = frozenset({"A_log", "D", "ia3_l"})


def has_weight_decay(name: str, parameter: nn.Parameter) -> bool:
    """Return whether weight decay applies: to matrices, but not to biases, norms and NO_DECAY."""
    return parameter.ndim > 1 and NO_DECAY.isdisjoint(name.split("."))


def build_param_groups(
    model: nn.Module,
    fresh: Iterable[str],
    *,
    lr: float,
    head_lr: float | None,
    weight_decay: float,
) -> list[dict[str, Any]]:
    """Build the optimizer groups of the trainable parameters, at most four.

    Groups differ in whether their parameters are newly initialized, and in weight decay.

    Args:
        fresh: names of newly initialized parameters.
        head_lr: learning rate of newly initialized parameters; None uses `lr`.
    """
    fresh = set(fresh)
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((name in fresh, has_weight_decay(name, parameter)), []).append(
                parameter
            )
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
    schedule_step: Callable[[int], int],
) -> LambdaLR:
    """Build a scheduler that multiplies the learning rate of each group by `schedule`.

    Args:
        schedule_step: maps an optimizer step to the unit of `warmup` and `total`.
    """
    return LambdaLR(
        optimizer, lambda step: schedule(schedule_step(step), warmup=warmup, total=total)
    )
