"""Look into modules: replace `forward`, record inputs and outputs, and run an example batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

# Maximum difference between equal logits, relative to the largest logit. Rounding errors are far
# smaller. A wrong hidden state changes logits far more.
TOLERANCE = 1e-4


@contextmanager
def replace_forward(
    parts: Sequence[nn.Module], forward: Callable[..., Any], first: Callable[..., Any] | None = None
) -> Iterator[None]:
    """Temporarily replace the `forward` method of modules.

    Args:
        forward: the new method.
        first: the new method of the first module; `forward` if None.
    """
    # Without parts, this list still has one item, which `strict=False` below ignores.
    methods = [first or forward, *[forward] * (len(parts) - 1)]
    # An attribute of the instance hides the method of its class. Keep one that is already there.
    before = [vars(part).get("forward") for part in parts]
    try:
        for part, method in zip(parts, methods, strict=False):
            vars(part)["forward"] = method
        yield
    finally:
        for part, own in zip(parts, before, strict=True):
            del vars(part)["forward"]
            if own is not None:
                vars(part)["forward"] = own


@contextmanager
def record_outputs(parts: Sequence[nn.Module]) -> Iterator[dict[nn.Module, Tensor]]:
    """Record the latest output of each module, or the output's first item if it is a tuple."""
    outputs: dict[nn.Module, Tensor] = {}

    def record(part: nn.Module, _: Any, output: Any) -> None:
        outputs[part] = output if isinstance(output, Tensor) else output[0]

    handles = [part.register_forward_hook(record) for part in parts]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def record_inputs(part: nn.Module) -> Iterator[list[Tensor]]:
    """Record the floating-point tensors in the arguments of a module's first call.

    Later calls are ignored, because ALBERT runs a block several times, on the block's own output.
    """
    inputs: list[Tensor] = []

    def record(_: nn.Module, args: Any, kwargs: Any) -> None:
        if not inputs:
            inputs.extend(find_floats((args, kwargs)))

    handle = part.register_forward_pre_hook(record, with_kwargs=True)
    try:
        yield inputs
    finally:
        handle.remove()


def find_floats(values: Any) -> list[Tensor]:
    """Return the floating-point tensors in nested tuples, lists and dicts, in order."""
    return [x for x in tree_leaves(values) if isinstance(x, Tensor) and x.is_floating_point()]


def find_parameters_in_graph(tensor: Tensor) -> set[Tensor]:
    """Return the trainable parameters on which a tensor depends."""
    leaves: set[Tensor] = set()
    stack, visited = [tensor.grad_fn], set()
    while stack:
        node = stack.pop()
        if node is None or node in visited:
            continue
        visited.add(node)
        # Only the nodes that accumulate gradients of leaf tensors have this attribute.
        if hasattr(node, "variable"):
            leaves.add(node.variable)
        stack += [function for function, _ in node.next_functions]
    return leaves


def run_example_batch(
    module: nn.Module,
    ids: Sequence[Sequence[int]] = ((0, 1, 2, 3), (3, 1, 0, 2)),
    # One row has padding, because transformers drops a mask that contains only ones.
    lengths: Sequence[int] = (4, 3),
) -> Any:
    """Run a module on a small batch in evaluation mode and return the output.

    Args:
        ids: token ids (batch, length), including padding.
        lengths: number of real tokens in each row.
    """
    device = next(module.parameters()).device
    mask = torch.zeros((len(ids), len(ids[0])), dtype=torch.int64, device=device)
    for row, length in zip(mask, lengths, strict=True):
        row[:length] = 1
    # transformers inspects the values of the mask, which a meta tensor does not have.
    attention_mask = None if device.type == "meta" else mask
    input_ids = torch.tensor(ids, device=device)
    training = module.training
    try:
        return module.eval()(input_ids=input_ids, attention_mask=attention_mask)
    finally:
        module.train(training)
