"""Does what should train really train? Named before, proved after the first backward pass."""

from __future__ import annotations

import logging

import torch
from torch import Tensor, nn

from kinopoisk_ft.errors import UserError
from kinopoisk_ft.models.network import (
    Network,
    blocks_of,
    inputs_of,
    outputs_of,
    parameters_behind,
    run_once,
)

log = logging.getLogger(__name__)

SHOWN = 8


def count_parameters(module: nn.Module) -> tuple[int, int]:
    """Return (trainable, total) numbers of parameters; a tied one counts once.

    Modules that PEFT trains whole, such as the head, count once too: PEFT keeps a second, untrained
    copy of each.
    """
    beginnings = tuple(
        f"{name}.original_module."
        for name, part in module.named_modules()
        if hasattr(part, "original_module") and hasattr(part, "modules_to_save")
    )
    named = module.named_parameters(remove_duplicate=False)
    counted = {parameter for name, parameter in named if not name.startswith(beginnings)}
    sizes = [(p.numel(), p.requires_grad) for p in counted]
    return sum(n for n, trains in sizes if trains), sum(n for n, _ in sizes)


def log_trainable(module: nn.Module) -> None:
    """Log how many parameters train, and which kinds of name; raises UserError if none does."""
    trainable, total = count_parameters(module)
    if trainable == 0:
        raise UserError("no parameter would train", where="adapter", fix="choose another adapter")
    kinds: dict[str, int] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            kind = ".".join("*" if part.isdigit() else part for part in name.split("."))
            kinds[kind] = kinds.get(kind, 0) + 1
    log.info(
        "trainable parameters: %s of %s (%.2f%%)",
        f"{trainable:,}",
        f"{total:,}",
        100 * trainable / total,
    )
    shown = [f"{name} x{n}" if n > 1 else name for name, n in kinds.items()]
    more = f", and {len(shown) - SHOWN} more kinds" if len(shown) > SHOWN else ""
    log.info("they are: %s%s", ", ".join(shown[:SHOWN]), more)
    log.debug("all trainable: %s", ", ".join(shown))


def check_gradients(module: nn.Module) -> None:
    """Raise UserError if a trainable tensor got no gradient, or all gradients are zero.

    Called after the first backward pass. A matrix used as `module.weight @ x` goes round the
    adapter that sits on the module: unchecked, such a run trains its head alone, in silence.
    """
    trained = [(n, p.grad) for n, p in module.named_parameters() if p.requires_grad]
    without = [name for name, gradient in trained if gradient is None]
    if without:
        shown = ", ".join(without[:3]) + (", …" if len(without) > 3 else "")
        raise UserError(
            f"{len(without)} of {len(trained)} trainable tensors got no gradient: {shown}",
            where="the first backward pass",
            fix="these modules are not called in the forward pass: choose other targets",
        )
    if not any(bool(gradient.any()) for _, gradient in trained if gradient is not None):
        raise UserError(
            "every gradient is zero: the run would train nothing",
            where="the first backward pass",
            fix="check the adapter's targets and initial values",
        )


def trainable_below(network: Network, layers: int) -> set[Tensor]:
    """Return the trainable parameters that the inputs of the block at the cut depend on.

    Args:
        layers: number of blocks below the cut.
    """
    behind: set[Tensor] = set()
    for tensor in _at_cut(network, layers):
        behind |= {tensor} if tensor.is_leaf and tensor.requires_grad else parameters_behind(tensor)
    return behind


def check_frozen(network: Network, layers: int) -> None:
    """Raise UserError if weights below the cut train, other than those with random values."""
    behind = trainable_below(network, layers)
    named = network.module.named_parameters()
    found = [name for name, p in named if p in behind and name not in network.fresh]
    if found:
        raise UserError(
            f"{len(found)} weights below the {layers} frozen layers would train: {found[0]}, …",
            where="adapter.layers",
            fix="choose another adapter for this model",
        )


def _at_cut(network: Network, layers: int) -> list[Tensor]:
    """Return the inputs of the block at the cut, or the output of the last if all are below."""
    blocks = blocks_of(network)
    whole = layers == len(blocks)
    try:
        with (
            torch.enable_grad(),
            outputs_of(blocks[-1:]) as outputs,
            inputs_of(blocks[-1] if whole else blocks[layers]) as inputs,
        ):
            run_once(network.module)
    except UserError as error:  # an operator that was asked for by name and needs a GPU
        log.warning("weights below the cut are known by their modules alone: %s", error.what)
        return []
    found = [*outputs.values()] if whole else inputs
    if not found:
        raise UserError(
            f"the layers '{network.layers}' take no part in the forward pass for texts",
            where="adapter.layers",
            fix="choose another adapter for this model",
        )
    return found
