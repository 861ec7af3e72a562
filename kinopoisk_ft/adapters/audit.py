"""Check which parameters an adapter trains."""

from __future__ import annotations

import logging

import torch
from torch import Tensor, nn

from kinopoisk_ft.errors import UserError
from kinopoisk_ft.models.inspection import (
    find_parameters_in_graph,
    record_inputs,
    record_outputs,
    run_example_batch,
)
from kinopoisk_ft.models.network import Network, list_blocks

log = logging.getLogger(__name__)


def count_parameters(module: nn.Module) -> tuple[int, int]:
    """Return the numbers of trainable weights and of all weights. Tied weights count once.

    For each module in `modules_to_save`, PEFT also keeps the untrained original. The original is
    not counted.
    """
    copies = tuple(
        f"{name}.original_module."
        for name, part in module.named_modules()
        if hasattr(part, "original_module") and hasattr(part, "modules_to_save")
    )
    # A tied parameter has several names, and some of them may be outside the copies.
    named = module.named_parameters(remove_duplicate=False)
    counted = {parameter for name, parameter in named if not name.startswith(copies)}
    sizes = [(p.numel(), p.requires_grad) for p in counted]
    return sum(n for n, trains in sizes if trains), sum(n for n, _ in sizes)


def log_trainable(module: nn.Module) -> None:
    """Log how many weights are trained, and the names of their parameters (`*` for layer numbers).

    Raises:
        UserError: no parameter is trainable.
    """
    trainable, total = count_parameters(module)
    if trainable == 0:
        raise UserError("no parameter is trainable", where="adapter", fix="choose another adapter")
    kinds: dict[str, int] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            kind = ".".join("*" if part.isdigit() else part for part in name.split("."))
            kinds[kind] = kinds.get(kind, 0) + 1
    share = 100 * trainable / total
    log.info("trainable parameters: %s of %s (%.2f%%)", f"{trainable:,}", f"{total:,}", share)
    names = [f"{name} x{n}" if n > 1 else name for name, n in kinds.items()]
    log.debug("names of all trainable parameters: %s", ", ".join(names))


def check_gradients(module: nn.Module) -> None:
    """Check the gradients after the first backward pass.

    A forward pass can bypass an adapter, for example by computing `module.weight @ x`. Without this
    check, such a run would train only the head.

    Raises:
        UserError: a trainable tensor has no gradient, or all gradients are zero.
    """
    trained = [(n, p.grad) for n, p in module.named_parameters() if p.requires_grad]
    without = [name for name, gradient in trained if gradient is None]
    if without:
        names = ", ".join(without[:3]) + (", …" if len(without) > 3 else "")
        raise UserError(
            f"{len(without)} of {len(trained)} trainable tensors got no gradient: {names}",
            where="the first backward pass",
            fix="choose other adapter targets, because the forward pass does not use these tensors",
        )
    # Some gradients may be zero: LoRA's B starts at 0, so A gets a zero gradient at first.
    if not any(bool(gradient.any()) for _, gradient in trained if gradient is not None):
        raise UserError(
            "every gradient is zero, so training would not change any weight",
            where="the first backward pass",
            fix="check the targets and the initialization in adapter.config",
        )


def find_trainable_below(network: Network, layers: int) -> set[Tensor]:
    """Find the trainable parameters that affect the inputs of the block with the index `layers`.

    If `layers` equals the number of blocks, find the trainable parameters that affect the output
    of the last block instead.
    """
    below: set[Tensor] = set()
    for tensor in _record_boundary_states(network, layers):
        # A parameter that is itself an input of the block has no graph.
        if tensor.is_leaf and tensor.requires_grad:
            below.add(tensor)
        else:
            below |= find_parameters_in_graph(tensor)
    return below


def count_depths(network: Network, module: nn.Module) -> dict[str, int]:
    """Return the depth of each parameter: its distance from the head, in blocks.

    With N blocks, the depth is 1 for the last block, N for the first one, and N + 1 for parameters
    below the first block. Parameters above the blocks are left out.

    Args:
        module: the network with its adapter; the names of its parameters are the keys.
    """
    blocks = list_blocks(network)
    depths: dict[Tensor, int] = {}
    for i, block in enumerate(blocks):
        depths |= dict.fromkeys(block.parameters(), len(blocks) - i)
    # Blocks may share parameters, such as a bias of relative attention, with layers below them.
    below = find_trainable_below(network, 0)
    for name in network.embeddings:
        below |= set(network.module.get_submodule(name).parameters())
    depths |= dict.fromkeys(below, len(blocks) + 1)
    return {name: depths[p] for name, p in module.named_parameters() if p in depths}


def _record_boundary_states(network: Network, layers: int) -> list[Tensor]:
    blocks = list_blocks(network)
    all_below = layers == len(blocks)
    try:
        with (
            # The graph of the states is needed even if the caller uses no_grad.
            torch.enable_grad(),
            record_outputs(blocks[-1:]) as outputs,
            record_inputs(blocks[-1] if all_below else blocks[layers]) as inputs,
        ):
            run_example_batch(network.module)
    except (UserError, RuntimeError) as error:
        # An operator may need a GPU while the module is on the CPU. On the meta device, the forward
        # pass may read values.
        log.warning(
            "cannot check whether all weights below the frozen layers are frozen: %s", error
        )
        return []
    states = [*outputs.values()] if all_below else inputs
    if not states:
        raise UserError(
            f"the model does not use its modules '{network.layers}' when it classifies a text, so "
            "freezing these modules would have no effect",
            where="adapter.layers",
            fix="use adapter=head, lora or none with this model",
        )
    return states
