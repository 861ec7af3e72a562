"""Describe a network of any architecture to the rest of the project."""

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
# Relative to the largest logit. Two ways to compute the same logits differ by rounding alone, far
# below this; a wrong hidden state changes the logits by far more.
TOLERANCE = 1e-4


@contextmanager
def replace_modules(root: nn.Module, parts: Mapping[str, nn.Module]) -> Iterator[None]:
    """Replace submodules while the context is open.

    Args:
        parts: the replacements by dotted name.
    """
    places = [(root.get_submodule(n.rpartition(".")[0]), n.rpartition(".")[2]) for n in parts]
    originals = [parent.get_submodule(leaf) for parent, leaf in places]
    try:
        for (parent, leaf), part in zip(places, parts.values(), strict=True):
            setattr(parent, leaf, part)
        yield
    finally:
        for (parent, leaf), part in zip(places, originals, strict=True):
            setattr(parent, leaf, part)


@contextmanager
def record_outputs(parts: Sequence[nn.Module]) -> Iterator[dict[nn.Module, Tensor]]:
    """Record the last output of each module: the tensor, or the first item of a tuple."""
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
    """Record the floating-point tensors that a module is called with, also those in tuples."""
    inputs: list[Tensor] = []

    def record(_: nn.Module, args: Any, kwargs: Any) -> None:
        leaves = tree_leaves((args, kwargs))
        inputs.extend(x for x in leaves if isinstance(x, Tensor) and x.is_floating_point())

    handle = part.register_forward_pre_hook(record, with_kwargs=True)
    try:
        yield inputs
    finally:
        handle.remove()


def find_parameters_in_graph(tensor: Tensor) -> set[Tensor]:
    """Find the trainable parameters that a tensor depends on: the leaves of its autograd graph."""
    leaves: set[Tensor] = set()
    stack, visited = [tensor.grad_fn], set()
    while stack:
        node = stack.pop()
        if node is None or node in visited:
            continue
        visited.add(node)
        if hasattr(node, "variable"):
            leaves.add(node.variable)
        stack += [function for function, _ in node.next_functions]
    return leaves


def run_example_batch(
    module: nn.Module,
    ids: Sequence[Sequence[int]] = ((0, 1, 2, 3), (3, 1, 0, 2)),
    lengths: Sequence[int] = (4, 3),
) -> Any:
    """Run a module on a few short rows in evaluation mode and return its output.

    Args:
        ids: token ids (batch, length), padding included.
        lengths: number of tokens of each row without padding.
    """
    device = next(module.parameters()).device
    mask = torch.zeros((len(ids), len(ids[0])), dtype=torch.int64, device=device)
    for row, length in zip(mask, lengths, strict=True):
        row[:length] = 1
    # transformers reads the values of the mask, and meta tensors have no values.
    attention_mask = None if device.type == "meta" else mask
    input_ids = torch.tensor(ids, device=device)
    training = module.training
    try:
        return module.eval()(input_ids=input_ids, attention_mask=attention_mask)
    finally:
        module.train(training)


class Layout:
    """Save and load the weights of a network in a model folder.

    By default the weights are one safetensors file, and the recipe whose options the card stores
    rebuilds the network. Subclasses write layouts that other tools can read.
    """

    name = "recipe"
    # Task type of PEFT's wrapper; None if PEFT has no wrapper for this kind of network.
    peft_task: str | None = None
    # Name of the module whose output our head pools; "" if there is no such module.
    backbone = ""

    def backbone_output(self, hidden: Tensor) -> Any:
        """Wrap hidden states (batch, length, d_model) like the output of the backbone."""
        return hidden

    def save(self, module: nn.Module, folder: Path) -> None:
        """Save the weights of a module in an existing folder."""
        save_model(module, str(folder / WEIGHTS))

    def load(self, source: str, card: Any, tokenizer: Any, trained: bool) -> nn.Module:
        """Load a module in fp32, without an adapter.

        Args:
            source: the model folder, or the folder or hub name of an adapter's base.
            card: the `Card` of the model folder.
            trained: whether `source` contains the trained head.
        """
        module = build_recipe(card.recipe, source).build(card.class_names, tokenizer).module
        load_model(module, Path(source) / WEIGHTS)
        return module

    def match_tokenizer(self, module: Any, tokenizer: Any, source: str) -> None:
        """Raise UserError if the tokenizer has ids for which the module has no embedding."""


def build_recipe(options: Mapping[str, Any] | None, source: str) -> ModelRecipe:
    """Build the recipe that the card of a model folder names in `_target_`.

    Raises:
        UserError: the name is not a `ModelRecipe`, or is not trusted.
    """
    values = dict(options or {})
    target = values.pop("_target_", None)
    reason = check_target(target)
    kind = None if reason else get_object(target)
    if not (isinstance(kind, type) and issubclass(kind, ModelRecipe)):
        raise UserError(
            reason or f"'{target}' is not a model recipe",
            where=source,
            fix="add the module of the model to PYTHONPATH, as in training",
        )
    return kind(**values)


@dataclass
class Network:
    """Hold a module and the names of its parts.

    Args:
        module: returns an object with `logits` from `forward(input_ids, attention_mask)`.
        layers: dotted name of the ModuleList of blocks, first block first; "" if the architecture
            has no such list (ALBERT, whose blocks share weights).
        embeddings: dotted names of the modules that compute the input of the first block.
        head: dotted names of the modules that always train.
        fresh: names of newly initialized parameters, whose values come from no checkpoint.
        base: hub name or absolute folder of the checkpoint; None after a random start.
        max_positions: number of tokens that the model can read; None for no limit.
        pooling: one of POOLINGS, or "pooler" for the head of transformers.
        revision: revision of the checkpoint on the hub.
        layout: way in which the weights are saved and loaded.
        no_adapter: names of modules that an adapter cannot change, with the reason.
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
        """Return the name of the module that contains everything below the head."""
        return (self.layers or self.embeddings[0]).split(".")[0]


class FitMethods(Protocol):
    """Interface of the two ways to train that a task offers to a recipe."""

    def fit_network(self, recipe: ModelRecipe) -> Any:
        """Train a network by gradient descent on batches of tokens."""
        ...

    def fit_estimator(self, recipe: Any) -> Any:
        """Fit an estimator with the interface of scikit-learn on whole texts."""
        ...


@dataclass(kw_only=True, eq=False)
class ModelRecipe:
    """Base class of the objects that the files of the group `model` build.

    A new family of models is a subclass with `load_tokenizer` and `build`.

    Args:
        lr: learning rate of the weights below the head in full fine-tuning.
        head_lr: learning rate of the head; None uses the same rate.
        targets: names of the modules that each adapter changes, by adapter.
    """

    # The config is checked against these types. A subclass inherits them, so they must be built-in
    # types, which every module can resolve.
    lr: float
    head_lr: float | None
    targets: dict[str, list[str] | str] | None

    def fit(self, trainer: FitMethods) -> Any:
        """Choose the way to train this model; return the result of the trainer's method."""
        return trainer.fit_network(self)

    def load_tokenizer(self, texts: Sequence[str]) -> Any:
        """Load the tokenizer, or train it on `texts`, the texts of the train split."""
        raise NotImplementedError

    def build(self, class_names: Sequence[str], tokenizer: Any) -> Network:
        """Build a classifier in fp32."""
        raise NotImplementedError

    def build_lm(self, tokenizer: Any) -> Network:
        """Build the same backbone with a language-model head, for pretraining."""
        raise NotImplementedError

    def check_pretraining(self) -> None:
        """Raise UserError if this model has no language-model head."""
        if type(self).build_lm is ModelRecipe.build_lm:
            raise UserError(
                f"{type(self).__name__} cannot be pretrained: it has no language-model head",
                where="model",
                fix="choose another model, for example model=bert_scratch",
            )


@dataclass(frozen=True)
class Adapted:
    """Hold a module that an adapter has prepared for training.

    Args:
        fresh: names of newly initialized parameters.
        is_peft: whether the module is a `PeftModel`.
        targets: kinds and numbers of the modules that PEFT adapts, for example "query x12".
    """

    module: nn.Module
    fresh: set[str]
    is_peft: bool = False
    targets: str = ""


def list_blocks(network: Network) -> list[nn.Module]:
    """List the blocks of a network, first block first.

    Raises:
        UserError: the architecture has no single list of blocks.
    """
    if not network.layers:
        model = type(network.module).__name__
        raise UserError(
            f"the layers of this {model} cannot be frozen one by one: they share weights, or are "
            "not in one list",
            where="model.name",
            fix="use another adapter (none, head, bitfit, lora) and trainer.prefix_cache=off",
        )
    return list(network.module.get_submodule(network.layers).children())
