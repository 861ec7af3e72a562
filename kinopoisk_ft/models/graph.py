"""Look into a forward pass: what parts of a module give, what stands behind it; swap parts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves


@contextmanager
def replaced(root: nn.Module, parts: Mapping[str, nn.Module]) -> Iterator[None]:
    """Put other modules in the places of these dotted names while the context is open."""
    places = [(root.get_submodule(n.rpartition(".")[0]), n.rpartition(".")[2]) for n in parts]
    kept = [parent.get_submodule(leaf) for parent, leaf in places]
    try:
        for (parent, leaf), part in zip(places, parts.values(), strict=True):
            setattr(parent, leaf, part)
        yield
    finally:
        for (parent, leaf), part in zip(places, kept, strict=True):
            setattr(parent, leaf, part)


@contextmanager
def outputs_of(parts: Sequence[nn.Module]) -> Iterator[dict[nn.Module, Tensor]]:
    """Collect what each part gave last: its tensor, or the first one of a tuple or output."""
    found: dict[nn.Module, Tensor] = {}

    def keep(part: nn.Module, _: Any, output: Any) -> None:
        found[part] = output if isinstance(output, Tensor) else output[0]

    handles = [part.register_forward_hook(keep) for part in parts]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def inputs_of(part: nn.Module) -> Iterator[list[Tensor]]:
    """Collect the floating-point tensors that a part is called with, within tuples too."""
    found: list[Tensor] = []

    def keep(_: nn.Module, args: Any, kwargs: Any) -> None:
        leaves = tree_leaves((args, kwargs))
        found.extend(x for x in leaves if isinstance(x, Tensor) and x.is_floating_point())

    handle = part.register_forward_pre_hook(keep, with_kwargs=True)
    try:
        yield found
    finally:
        handle.remove()


def parameters_behind(tensor: Tensor) -> set[Tensor]:
    """Return the leaves of a tensor's graph: what requires a gradient and has a part in it."""
    leaves: set[Tensor] = set()
    todo, seen = [tensor.grad_fn], set()
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            leaves.add(node.variable)
        todo += [behind for behind, _ in node.next_functions]
    return leaves


def run_once(
    module: nn.Module,
    ids: Sequence[Sequence[int]] = ((0, 1, 2, 3), (3, 1, 0, 2)),
    lengths: Sequence[int] = (4, 3),
) -> Any:
    """Return the output for a few short rows in evaluation mode.

    Args:
        ids: rows of the same length, padding included.
        lengths: tokens of each row without padding.
    """
    device = next(module.parameters()).device
    mask = torch.zeros((len(ids), len(ids[0])), dtype=torch.int64, device=device)
    for row, length in zip(mask, lengths, strict=True):
        row[:length] = 1
    # transformers reads the values of a mask, which meta tensors do not have.
    given = None if device.type == "meta" else mask
    training = module.training
    try:
        return module.eval()(input_ids=torch.tensor(ids, device=device), attention_mask=given)
    finally:
        module.train(training)
