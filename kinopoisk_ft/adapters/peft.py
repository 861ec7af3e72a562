"""Apply the adapters of the PEFT library."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from peft import PEFT_TYPE_TO_TUNER_MAPPING, PeftConfig, get_peft_model
from peft.utils import constants
from torch import nn
from transformers.pytorch_utils import Conv1D

from kinopoisk_ft.adapters.base import Adapter
from kinopoisk_ft.errors import UserError, suggest_name
from kinopoisk_ft.models.frozen_weights import store_in_fp32
from kinopoisk_ft.models.inspection import record_outputs, run_example_batch
from kinopoisk_ft.models.network import Adapted, Network
from kinopoisk_ft.models.untrusted import check_imports

log = logging.getLogger(__name__)

AUTO, ALL_LINEAR = "auto", constants.INCLUDE_LINEAR_LAYERS_SHORTHAND
WHERE = "adapter.config.target_modules"


class Peft(Adapter):
    """An adapter of the PEFT library, defined by a config such as `LoraConfig`."""

    needs_saved_base = True

    def __init__(self, *, config: PeftConfig, lr: float) -> None:
        super().__init__(lr=lr)
        if not isinstance(config, PeftConfig):
            raise UserError(
                f"adapter.config={config} is not a config of PEFT",
                where="adapter.config",
                fix="set its keys, for example adapter.config.r=8; see conf/adapter/lora.yaml",
            )
        self.config = config

    def check_gradient_checkpointing(self) -> None:
        """Raise UserError if PEFT adds keys and values, because checkpointed layers ignore them."""
        if self.config.peft_type in ("PREFIX_TUNING", "CARTRIDGE"):
            raise UserError(
                f"{type(self.config).__name__} does not work with gradient checkpointing, because "
                "layers with checkpointing ignore the keys and values that this adapter trains",
                where="trainer.gradient_checkpointing",
                fix="use trainer.gradient_checkpointing=false, or another adapter",
            )

    def apply(self, network: Network) -> Adapted:
        """Wrap the network's module in a `PeftModel`.

        PEFT also trains and saves the head and the modules that `modules_to_save` of the config
        lists.

        Raises:
            UserError: a module name in the config matches no module of the network, or PEFT cannot
                adapt this network.
        """
        config: Any = self.config
        # The config may come from someone else, so check it before PEFT reads it.
        check_imports(vars(config), "adapter.config")
        choose_targets(network, config)
        check_targets(network, getattr(config, "target_modules", None))
        # PEFT copies these modules, trains all weights of the copies and saves them.
        config.modules_to_save = _add_head(network, config.modules_to_save)
        store_in_fp32(network.module, config.modules_to_save)
        task = network.layout.peft_task
        if task is not None:
            config.task_type = task
        try:
            module = get_peft_model(network.module, config)
        except (ValueError, TypeError, NotImplementedError) as error:
            raise UserError(
                f"{type(config).__name__} does not support this model: {str(error)[:1000]}",
                where="adapter.config",
                fix=f"choose another adapter, or change {WHERE} ({_list_linear_layers(network)})",
            ) from error
        _check_trained_dtype(module)
        # `get_peft_model` takes the path from the module, but only models of transformers have one.
        config.base_model_name_or_path = network.base
        # AutoPeftModel loads the base model at this revision.
        config.revision = network.revision
        names = getattr(module.base_model, "targeted_module_names", [])
        if task is None:
            _write_full_names(config, names)
        # The copies of the head that PEFT trains have other names. New weights of the adapter are
        # left out, because they use the learning rate of the adapter.
        wrapped = module.get_base_model()
        prefix = next(name for name, part in module.named_modules() if part is wrapped)
        fresh = {
            f"{prefix}.{name}"
            for name, parameter in wrapped.named_parameters()
            if parameter.requires_grad
            and name.replace(".modules_to_save.default.", ".") in network.fresh
        }
        counts = Counter(name.split(".")[-1] for name in names)
        targets = ", ".join(f"{name} x{count}" for name, count in sorted(counts.items()))
        log.info("%s adapts %d modules: %s", config.peft_type.value, len(names), targets)
        return Adapted(module, fresh, is_peft=True, targets=targets)


def _check_trained_dtype(module: nn.Module) -> None:
    named = module.named_parameters()
    names = [n for n, p in named if p.requires_grad and p.dtype == torch.bfloat16]
    if names:
        raise UserError(
            f"the adapter trains {len(names)} weights of the base, such as {names[0]}; trained "
            "weights must be fp32, but model.dtype=bf16 stores them in bf16",
            where="model.dtype",
            fix="use model.dtype=fp32, or list the modules in adapter.config.modules_to_save",
        )


def _add_head(network: Network, chosen: Iterable[str] | None) -> list[str]:
    names = list(chosen or [])
    for name in _find_unmatched(network, names):
        raise UserError(
            f"the model has no module '{name}', which the adapter's config names",
            where="adapter.config.modules_to_save",
            fix="use the end of a module's name, for example embeddings.LayerNorm",
        )
    return [*network.head, *(name for name in names if name not in network.head)]


def choose_targets(network: Network, config: Any) -> None:
    """Replace `auto` and `all-linear` in a PEFT config with module names of the network.

    `all-linear` selects the linear layers below the head, except layers on which an adapter would
    have no effect. `auto` selects PEFT's default modules for the model type. If PEFT has no default
    for this type, or the model lacks one of these modules, `auto` means `all-linear`.
    """
    targets = getattr(config, "target_modules", None)
    # PEFT's configs turn a list into a set, and reject layers_to_transform if targets are a string.
    is_auto = targets in (AUTO, {AUTO})
    body = network.module.get_submodule(network.body)
    model_type = getattr(getattr(body, "config", None), "model_type", None)
    if is_auto:
        # Each tuner class of PEFT maps model types to default targets, except the class of IA3.
        tuner = PEFT_TYPE_TO_TUNER_MAPPING[config.peft_type]
        ia3 = constants.TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING
        mapping = getattr(tuner, "target_module_mapping", ia3)
        targets = mapping.get(model_type)
        chosen = targets is not None and not _find_unmatched(network, targets)
        targets = targets if chosen else ALL_LINEAR
        choice = (
            f"PEFT's default for '{model_type}'" if chosen else "all linear layers below the head"
        )
        log.debug("adapter targets: %s", choice)
        config.target_modules = targets if isinstance(targets, str) else set(targets)
    # PEFT also ignores the case of this word.
    if isinstance(targets, str) and targets.lower() == ALL_LINEAR:
        config.target_modules = set(find_linear_layers(network))
        if not config.target_modules:
            raise UserError(
                "the model has no linear layers below its head that an adapter can change",
                where=WHERE,
                fix="choose adapter=none, freeze, head or bitfit, or list other modules",
            )
    if getattr(config, "feedforward_modules", None) in (AUTO, {AUTO}):
        known = constants.TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING.get(model_type, [])
        # PEFT requires that the feed-forward modules are among the targets.
        named = isinstance(config.target_modules, set)
        config.feedforward_modules = {
            name for name in known if not named or name in config.target_modules
        }


def find_linear_layers(network: Network) -> list[str]:
    """Return the names of the linear layers below the head that an adapter can change.

    Layers that the forward pass does not call, as in Zamba2, are left out.
    """
    heads = tuple(f"{head}." for head in network.head)
    layers = {
        name: part
        for name, part in network.module.named_modules()
        # GPT-2 has Conv1D layers, which are linear layers with a transposed weight.
        if isinstance(part, (nn.Linear, Conv1D))
        and name.startswith(f"{network.body}.")
        and not f"{name}.".startswith(heads)
        and name.split(".")[-1] not in network.no_adapter
    }
    try:
        with torch.no_grad(), record_outputs([*layers.values()]) as outputs:
            run_example_batch(network.module)
    except UserError as error:
        # The module may need a GPU for an operator, but it is still on the CPU.
        log.warning("cannot check which linear layers the model calls: %s", error.what)
        return [*layers]
    return [name for name, part in layers.items() if part in outputs]


def check_targets(network: Network, targets: Any) -> None:
    """Raise UserError if a target matches no module, or if an adapter on it has no effect."""
    if isinstance(targets, str) or targets is None:
        return
    for target in _find_unmatched(network, targets):
        names = {name.split(".")[-1] for name in find_linear_layers(network)}
        raise UserError(
            f"the target '{target}' matches no module of the model",
            where=WHERE,
            fix=f"{suggest_name(target, names)} ({_list_linear_layers(network)})",
        )
    for target in targets:
        reason = network.no_adapter.get(target.split(".")[-1])
        if reason:
            raise UserError(
                f"an adapter on '{target}' would have no effect: {reason}",
                where=WHERE,
                fix=f"choose other targets ({_list_linear_layers(network)})",
            )


def _find_unmatched(network: Network, targets: str | Iterable[str]) -> list[str]:
    names = [name for name, _ in network.module.named_modules() if name]
    # A string is a regular expression.
    if isinstance(targets, str):
        return [] if any(re.fullmatch(targets, name) for name in names) else [targets]
    return sorted(
        target
        for target in targets
        # PEFT compares names in the same way.
        if not any(name == target or name.endswith(f".{target}") for name in names)
    )


def _list_linear_layers(network: Network) -> str:
    names = {name.split(".")[-1] for name in find_linear_layers(network)}
    return f"linear modules: {', '.join(sorted(names)) or 'none'}"


def _write_full_names(config: Any, names: list[str]) -> None:
    # With short names, PEFT would load the adapter into a classifier of `transformers`, and leave
    # the head random without an error. Only this project's networks have the full names.
    if hasattr(config, "target_modules") and names:
        config.target_modules = set(names)
    feedforward = getattr(config, "feedforward_modules", None)
    if isinstance(feedforward, set):
        config.feedforward_modules = {name for name in names if name.endswith(tuple(feedforward))}
