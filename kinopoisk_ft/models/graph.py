"""Look into a forward pass: what parts of a module give, what stands behind it; swap parts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


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
