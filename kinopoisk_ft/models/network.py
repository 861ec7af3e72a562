"""Describe a network to the rest of the project, whatever its architecture."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from hydra.utils import get_object
from safetensors.torch import load_model, save_model
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from kinopoisk_ft.config.trust import check_target
from kinopoisk_ft.errors import UserError

WEIGHTS = "model.safetensors"


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


class Layout:
    """How the weights of a network lie in a model folder.

    By default they are one safetensors file, and the network is built again by its recipe, whose
    options stand in the folder's card. Subclasses write what other tools read.
    """

    name = "recipe"
    # Task of PEFT's own wrapper; None if PEFT knows no wrapper for this kind of network.
    peft_task: str | None = None
    # Name of the module that gives the states that our head pools; "" if there is none.
    backbone = ""

    def backbone_output(self, hidden: Tensor) -> Any:
        """Return hidden states (batch, length, d_model) as the backbone would return them."""
        return hidden

    def save(self, module: nn.Module, folder: Path) -> None:
        """Write the module's weights into an existing folder."""
        save_model(module, str(folder / WEIGHTS))

    def load(self, source: str, card: Any, tokenizer: Any, trained: bool) -> nn.Module:
        """Return the module without an adapter, in fp32.

        Args:
            source: the folder, or the base's hub name if the folder holds an adapter.
            card: the folder's `Card`.
            trained: the folder holds the trained head too.
        """
        module = build_recipe(card.recipe, source).build(card.class_names, tokenizer).module
        load_model(module, Path(source) / WEIGHTS)
        return module

    def match_tokenizer(self, module: Any, tokenizer: Any, source: str) -> None:
        """Raise UserError for a tokenizer with ids that the module has no embedding for."""


def build_recipe(options: Mapping[str, Any] | None, source: str) -> ModelRecipe:
    """Build the recipe that a model folder names.

    Raises:
        UserError: it names no `ModelRecipe`, or one that may not be called.
    """
    values = dict(options or {})
    target = values.pop("_target_", None)
    reason = check_target(target)
    kind = None if reason else get_object(target)
    if not (isinstance(kind, type) and issubclass(kind, ModelRecipe)):
        raise UserError(
            reason or f"'{target}' is no model recipe",
            where=source,
            fix="put the model's own module on Python's path (PYTHONPATH), as in training",
        )
    return kind(**values)


@dataclass
class Network:
    """A module with `forward(input_ids, attention_mask).logits` and the names of its parts.

    Args:
        layout: how its weights are saved and loaded.
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
    layers: str
    embeddings: list[str]
    head: list[str]
    fresh: set[str]
    base: str | None
    max_positions: int | None
    pooling: str
    revision: str | None = None
    layout: Layout = field(default_factory=Layout)
    no_adapter: dict[str, str] = field(default_factory=dict)

    @property
    def body(self) -> str:
        """Return the name of the module that holds everything below the head."""
        return (self.layers or self.embeddings[0]).split(".")[0]


class Fitting(Protocol):
    """The two ways to train that a task offers to a recipe."""

    def fit_network(self, recipe: ModelRecipe) -> Any:
        """Train a network by gradient descent on batches of tokens."""
        ...

    def fit_estimator(self, recipe: Any) -> Any:
        """Fit an estimator in the style of scikit-learn on whole texts."""
        ...


class ModelRecipe:
    """Base class of the objects that the files of the group `model` build.

    A new family of models is a subclass with `load_tokenizer` and `build`.

    Args:
        lr: learning rate of the weights of the body in full fine-tuning.
        head_lr: learning rate of the head; None for the same.
        targets: by adapter, the names of the modules that it adapts.
    """

    lr: float
    head_lr: float | None
    targets: Mapping[str, list[str] | str] | None

    def fit(self, fitting: Fitting) -> Any:
        """Train this model in the way that it needs; return what the task's method returns."""
        return fitting.fit_network(self)

    def load_tokenizer(self, texts: Sequence[str]) -> Any:
        """Return the tokenizer; `texts` of the train split serve recipes that train theirs."""
        raise NotImplementedError

    def build(self, class_names: Sequence[str], tokenizer: Any) -> Network:
        """Return a classifier in fp32."""
        raise NotImplementedError

    def build_lm(self, tokenizer: Any) -> Network:
        """Return the same backbone with a language-model head, for pretraining."""
        raise NotImplementedError

    def check_pretraining(self) -> None:
        """Raise UserError if this model has no language-model head."""
        if type(self).build_lm is ModelRecipe.build_lm:
            raise UserError(
                f"{type(self).__name__} has nothing to pretrain",
                where="model",
                fix="choose a model with a language-model head, for example model=bert_scratch",
            )


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
