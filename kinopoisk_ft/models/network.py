"""Define the interfaces of models: `ModelRecipe`, `Network` and `Layout`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.utils import get_object
from safetensors.torch import load_model, save_model
from torch import Tensor, nn

from kinopoisk_ft.config.trust import check_target
from kinopoisk_ft.errors import UserError

WEIGHTS = "model.safetensors"


class Layout:
    """Saves and loads the weights of a network.

    This default layout saves one safetensors file. To load it, the network is built again from the
    `ModelRecipe` options in the card. Subclasses define layouts that other tools can read.
    """

    name = "recipe"
    # task_type of the PEFT config; None if PEFT has no task-specific wrapper for the network.
    peft_task: str | None = None
    # Name of the submodule whose output our head pools; "" if there is no such submodule.
    backbone = ""
    # Whether the module that other tools load divides long texts as in training.
    divides_long_texts = False

    def backbone_output(self, hidden: Tensor) -> Any:
        """Wrap hidden states (batch, length, d_model) in the output class of the backbone."""
        return hidden

    def save(self, module: nn.Module, folder: Path) -> None:
        """Save the weights of a module in an existing folder."""
        # Unlike `save_file`, this function accepts tied weights.
        save_model(module, str(folder / WEIGHTS))

    def save_config(self, module: Any, card: Any, windows: Any, folder: Path) -> None:
        """Do nothing. Subclasses save config.json, so that other tools can load the module.

        They also save config.json in the folder of an adapter.

        Args:
            card, windows: see `describe_classifier`.
        """

    def load(self, source: str, card: Any, tokenizer: Any, trained: bool) -> nn.Module:
        """Load a module. If the model folder holds an adapter, load only its base model.

        The weights are fp32, except those that are bf16 according to the card's `dtype`.

        Args:
            source: the model folder or, if it holds an adapter, the folder or Hub id of the base
                model.
            card: the `Card` of the model folder.
            trained: whether `source` contains a trained head; False for an adapter's base model.
        """
        recipe = build_recipe(card.recipe, source)
        # A run sets this attribute according to data.truncation, so the saved options lack it.
        recipe.reads_windows = card.window_pooling is not None
        module = recipe.build(card.class_names, tokenizer).module
        load_model(module, Path(source) / WEIGHTS)
        return module

    def match_tokenizer(self, module: Any, tokenizer: Any, source: str) -> None:
        """Do nothing. Subclasses check that the tokenizer fits a loaded module."""


def build_recipe(options: Mapping[str, Any] | None, source: str) -> ModelRecipe:
    """Create the `ModelRecipe` that is stored in the card of a model folder.

    Args:
        options: the options of the recipe; `_target_` names its class.
        source: the model folder, for error messages.

    Raises:
        UserError: `_target_` is not a subclass of `ModelRecipe`, or its package is untrusted.
    """
    values = dict(options or {})
    target = values.pop("_target_", None)
    reason = check_target(target)
    kind = None if reason else get_object(target)
    if not (isinstance(kind, type) and issubclass(kind, ModelRecipe)):
        raise UserError(
            reason or f"'{target}' in kinopoisk_ft.json is not a subclass of ModelRecipe",
            where=source,
            fix="use the code that trained the model: add its folder to PYTHONPATH",
        )
    return kind(**values)


@dataclass
class Network:
    """A module, with the names of its submodules and the origin of its weights.

    Args:
        module: its `forward(input_ids, attention_mask)` returns an object with `logits`. The inputs
            have the shape (batch, length). If `window_pooling` is set, they may also have the
            shape (batch, windows, length).
        layers: dotted name of the ModuleList of blocks; "" if there is no such list. The list may
            contain lists (Funnel), or blocks that run several times (ALBERT).
        embeddings: dotted names of the modules that compute the input of the first block.
        head: dotted names of the modules that every adapter trains.
        fresh: names of newly initialized parameters.
        base: Hub id or absolute path of the checkpoint; None if all weights are random.
        max_positions: maximum number of tokens; None for no limit.
        pooling: pooling method of this project's classification head, for example "mean"; "pooler"
            for the head of transformers, "" for a language model.
        revision: revision of the checkpoint on the Hub.
        window_pooling: see `WindowPooling`; None if the module reads no windows.
        layout: how the weights are saved and loaded.
        no_adapter: {name: reason} for modules on which an adapter has no effect. A name is the last
            part of a dotted name.
    """

    module: nn.Module
    layers: str
    embeddings: list[str]
    head: list[str] = field(default_factory=list)
    fresh: set[str] = field(default_factory=set)
    base: str | None = None
    max_positions: int | None = None
    pooling: str = ""
    revision: str | None = None
    window_pooling: str | None = None
    layout: Layout = field(default_factory=Layout)
    no_adapter: dict[str, str] = field(default_factory=dict)

    @property
    def body(self) -> str:
        """Return the name of the top-level submodule that contains all layers below the head."""
        # If there is no single list of blocks, the embeddings are still inside this submodule.
        return (self.layers or self.embeddings[0]).split(".")[0]


@dataclass(kw_only=True, eq=False)
class ModelRecipe:
    """Base class for models; each file in conf/model instantiates a subclass.

    To add a family of models, implement `load_tokenizer` and `build` in a subclass.

    Args:
        lr: learning rate in full fine-tuning.
        head_lr: learning rate of newly initialized parameters. If None, all parameters use the same
            rate.
        targets: {name of an adapter: modules that the adapter changes}.
        window_pooling: how windows are pooled; see `WindowPooling`.
        reads_windows: whether `build` returns a classifier that reads windows. A run sets this
            according to data.truncation.
    """

    # Whether gradient descent trains this model; False for estimators such as `Tfidf`.
    is_network = True
    # The config is validated against these types. Subclasses inherit them, so they must be built-in
    # types, which can be resolved in every module.
    lr: float
    head_lr: float | None
    targets: dict[str, list[str] | str] | None
    window_pooling: str = "mean"
    reads_windows: bool = False

    @property
    def used_window_pooling(self) -> str | None:
        """Return how windows are pooled; None if the classifier reads no windows."""
        return self.window_pooling if self.reads_windows else None

    def measure_layers(self) -> tuple[int, int] | None:
        """Return the number of blocks and the total number of their weights, to estimate run time.

        The result is None if these numbers are unknown before the model is built.
        """
        return None

    def load_tokenizer(self, texts: Sequence[str]) -> Any:
        """Load a tokenizer, or train one on the texts of the train split."""
        raise NotImplementedError

    def build(self, class_names: Sequence[str], tokenizer: Any) -> Network:
        """Build the classifier in fp32."""
        raise NotImplementedError

    def build_skeleton(self) -> Network | None:
        """Build the classifier without weights, on the meta device; None if this is impossible."""
        return None

    def build_lm(self, tokenizer: Any) -> Network:
        """Build a language model for pretraining."""
        raise NotImplementedError

    def check_dtype(self, adapter: Any, strategy: str) -> None:
        """Raise UserError if the adapter or trainer.strategy does not support model.dtype."""

    def check_gradient_checkpointing(self) -> None:
        """Raise UserError if this model is known not to support gradient checkpointing.

        Other models are checked after they are built, by `recompute_activations`.
        """

    def check_pretraining(self) -> None:
        """Raise UserError if this model does not implement `build_lm`."""
        if type(self).build_lm is ModelRecipe.build_lm:
            raise UserError(
                f"{type(self).__name__} cannot be pretrained: it has no language modeling head",
                where="model",
                fix="choose another model, for example model=bert_scratch",
            )


@dataclass(frozen=True)
class Adapted:
    """A module that an adapter prepared for training.

    Args:
        fresh: names of newly initialized parameters.
        is_peft: whether the module is a `PeftModel`.
        targets: names and counts of the modules that PEFT adapts, for example "query x12".
    """

    module: nn.Module
    fresh: set[str]
    is_peft: bool = False
    targets: str = ""


def list_blocks(network: Network) -> list[nn.Module]:
    """Return the blocks of a network, first block first. A block that runs repeatedly counts once.

    Raises:
        UserError: the architecture does not have a single list of blocks.
    """
    if not network.layers:
        model = type(network.module).__name__
        raise UserError(
            f"the layers of {model} cannot be frozen, cached or given their own learning rates, "
            "because they are not in a single ModuleList",
            where="model.name",
            fix="use adapter=none, head, bitfit or lora, and set trainer.prefix_cache=off and "
            "trainer.layer_decay=null",
        )
    return flatten_blocks(network.module.get_submodule(network.layers))


def flatten_blocks(part: nn.Module) -> list[nn.Module]:
    """Return the blocks in a ModuleList, including blocks in nested lists."""
    nested = (flatten_blocks(c) if isinstance(c, nn.ModuleList) else [c] for c in part.children())
    return [block for blocks in nested for block in blocks]
