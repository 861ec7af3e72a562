"""What the rest of the project needs to know of a network, whatever its kind."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from kinopoisk_ft.errors import UserError


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


Kind = Literal["hf", "pooled", "mamba"]


@dataclass
class Network:
    """A module with `forward(input_ids, attention_mask).logits` and the names of its parts.

    Args:
        kind: "hf" (Hugging Face's own classifier), "pooled" (encoder and our head) or "mamba".
        layers: dotted name of the ModuleList of blocks, first block first; "" if the architecture
            has no such list, as ALBERT, whose blocks share weights.
        embeddings: dotted names of the modules that give the first block its hidden states.
        head: last parts of the names of modules that always train.
        fresh: names of parameters with random values that no checkpoint gave.
        base: hub name or absolute folder of the checkpoint; None after a random start.
        max_positions: tokens that the model can read; None where there is no limit.
        pooling: how a review's vector is taken from its tokens.
        no_adapter: module names that an adapter cannot sit on, with the reason.
    """

    module: nn.Module
    kind: Kind
    layers: str
    embeddings: list[str]
    head: list[str]
    fresh: set[str]
    base: str | None
    max_positions: int | None
    pooling: str
    revision: str | None = None
    no_adapter: dict[str, str] = field(default_factory=dict)

    @property
    def body(self) -> str:
        """Return the name of the module that holds everything below the head."""
        return (self.layers or self.embeddings[0]).split(".")[0]


class Recipe(Protocol):
    """What a file of the group `model` builds."""

    lr: float

    def load_tokenizer(self, texts: Sequence[str]) -> Any:
        """Return the tokenizer; `texts`, the train split's, serve models that train theirs."""
        ...

    def build(self, class_names: Sequence[str], tokenizer: Any) -> Network:
        """Return a classifier in fp32."""
        ...

    def build_lm(self, tokenizer: Any) -> Network:
        """Return the same backbone with a language-model head, for pretraining."""
        ...


@dataclass(frozen=True)
class Adapted:
    """A module ready to train.

    Args:
        fresh: names of parameters with random values.
        targets: kinds and numbers of the modules that PEFT adapts, for example "query x12".
    """

    module: nn.Module
    fresh: set[str]
    is_peft: bool = False
    targets: str = ""


def blocks_of(network: Network) -> list[nn.Module]:
    """Return the blocks, first block first.

    Raises:
        UserError: the architecture has no list of blocks.
    """
    if not network.layers:
        model = type(network.module).__name__
        raise UserError(
            f"the layers of this {model} cannot be frozen one by one: they share weights or do not "
            "lie in one list",
            where="model.name",
            fix="use another adapter (none, head, bitfit, lora) and trainer.prefix_cache=off",
        )
    return list(network.module.get_submodule(network.layers).children())


TOLERANCE = 1e-4  # of the largest logit: both ways do the same sums, wrong vectors are far off
