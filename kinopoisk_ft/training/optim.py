"""Build the optimizer's parameter groups."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

# Weight decay pulls parameters towards zero, which is not a neutral value for these. `A_log` is the
# logarithm of a selective scan's state matrix. Its skip connection `D` and IA3 scales start at 1.
NO_DECAY = frozenset({"A_log", "D", "ia3_l"})


def has_weight_decay(name: str, parameter: nn.Parameter) -> bool:
    """Return whether weight decay applies to a parameter.

    Weight decay applies to parameters with two or more dimensions. Exceptions are parameters that
    should not be pulled towards zero, such as IA3 scales.
    """
    # Biases and the weights of norms have one dimension.
    return parameter.ndim > 1 and NO_DECAY.isdisjoint(name.split("."))


def build_param_groups(
    model: nn.Module,
    fresh: Iterable[str],
    *,
    lr: float,
    head_lr: float | None,
    weight_decay: float,
    layer_decay: float | None = None,
    depths: Mapping[str, int] | None = None,
) -> list[dict[str, Any]]:
    """Divide the trainable parameters into groups for the optimizer.

    The groups differ in learning rate and weight decay.

    Args:
        fresh: names of newly initialized parameters.
        head_lr: learning rate of newly initialized parameters; `lr` if None.
        layer_decay: parameters at depth d have the learning rate lr * layer_decay^d (Clark, K. et
            al., 2020, ELECTRA, appendix B). Newly initialized parameters are not affected.
        depths: {parameter name: depth below the head, in layers}. Parameters that are not in this
            dict have depth 0.
    """
    fresh, depths = set(fresh), depths or {}
    groups: dict[tuple[bool, bool, int], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            depth = 0 if layer_decay is None or name in fresh else depths.get(name, 0)
            key = (name in fresh, has_weight_decay(name, parameter), depth)
            # Checkpoints number the parameters by group, so the order must be the same in each run.
            groups.setdefault(key, []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": head_lr if is_fresh and head_lr is not None else lr * (layer_decay or 1) ** depth,
            "weight_decay": weight_decay if decaying else 0.0,
        }
        for (is_fresh, decaying, depth), parameters in groups.items()
    ]
