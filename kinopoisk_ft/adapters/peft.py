"""Adapters of the PEFT library, with their targets chosen or checked before wrapping."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterable
from typing import Any

from peft import PEFT_TYPE_TO_TUNER_MAPPING, PeftConfig, get_peft_model
from peft.utils import constants
from torch import nn
from transformers.pytorch_utils import Conv1D

from kinopoisk_ft.adapters.base import Adapter
from kinopoisk_ft.errors import UserError, suggest_name
from kinopoisk_ft.models.network import Adapted, Network
from kinopoisk_ft.models.untrusted import check_imports

log = logging.getLogger(__name__)

AUTO, ALL_LINEAR = "auto", constants.INCLUDE_LINEAR_LAYERS_SHORTHAND
WHERE = "adapter.config.target_modules"


class Peft(Adapter):
    """Any PEFT method: `config` is its own config object."""

    needs_saved_base = True

    def __init__(self, *, config: PeftConfig, lr: float) -> None:
        super().__init__(lr=lr)
        self.config = config

    def apply(self, network: Network) -> Adapted:
        """Wrap the module; raises UserError for targets that match nothing or cannot be adapted.

        Head and fresh modules are trained whole and saved with the adapter.
        """
        config: Any = self.config
        check_imports(vars(config), "adapter.config")
        choose_targets(network, config)
        check_targets(network, getattr(config, "target_modules", None))
        config.modules_to_save = list(network.head)
        task = network.layout.peft_task
        if task is not None:
            config.task_type = task
        try:
            module = get_peft_model(network.module, config)
        except (ValueError, TypeError, NotImplementedError) as error:
            raise UserError(
                f"{type(config).__name__} cannot work with this model: {str(error)[:1000]}",
                where="adapter.config",
                fix=f"choose another adapter, or other {WHERE} ({_listed(network)})",
            ) from error
        config.base_model_name_or_path = network.base
        names = getattr(module.base_model, "targeted_module_names", [])
        if task is None:
            _write_full_names(config, names)
        fresh = {
            name
            for name, parameter in module.named_parameters()
            if parameter.requires_grad and ".modules_to_save." in name
        }
        counts = Counter(name.split(".")[-1] for name in names)
        targets = ", ".join(f"{name} x{count}" for name, count in sorted(counts.items()))
        log.info("%s adapts %d modules: %s", config.peft_type.value, len(names), targets)
        return Adapted(module, fresh, is_peft=True, targets=targets)


def choose_targets(network: Network, config: Any) -> None:
    """Replace `auto` and `all-linear` in a PEFT config with names of this network's modules.

    `auto` is the choice that PEFT makes for the model type. Where PEFT has none, or names modules
    that this model does not have, it is every linear layer of the body, never of the head.
    """
    targets = getattr(config, "target_modules", None)
    # PEFT's configs turn a list into a set, and refuse layers_to_transform next to a string.
    is_auto = targets in (AUTO, {AUTO})
    body = network.module.get_submodule(network.body)
    model_type = getattr(getattr(body, "config", None), "model_type", None)
    if is_auto:
        # IA3 keeps its map elsewhere than PEFT's other methods.
        tuner = PEFT_TYPE_TO_TUNER_MAPPING[config.peft_type]
        ia3 = constants.TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING
        mapping = getattr(tuner, "target_module_mapping", ia3)
        targets = mapping.get(model_type)
        chosen = targets is not None and not _missing(network, targets)
        targets = targets if chosen else ALL_LINEAR
        by = f"PEFT's choice for '{model_type}'" if chosen else "all linear layers of the body"
        log.info("adapter targets are %s", by)
        config.target_modules = targets if isinstance(targets, str) else set(targets)
    if isinstance(targets, str) and targets.lower() == ALL_LINEAR:
        config.target_modules = set(linear_layers(network))
        if not config.target_modules:
            raise UserError(
                "the model has no linear layers below its head for an adapter",
                where=WHERE,
                fix="choose adapter=none, freeze, head or bitfit, or name modules of another kind",
            )
    if getattr(config, "feedforward_modules", None) in (AUTO, {AUTO}):
        known = constants.TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING.get(model_type, [])
        named = isinstance(config.target_modules, set)
        config.feedforward_modules = {
            name for name in known if not named or name in config.target_modules
        }


def linear_layers(network: Network) -> list[str]:
    """Return the names of the linear layers of the body that an adapter can change."""
    heads = tuple(f"{head}." for head in network.head)
    return [
        name
        for name, part in network.module.named_modules()
        if isinstance(part, (nn.Linear, Conv1D))
        and name.startswith(f"{network.body}.")
        and not f"{name}.".startswith(heads)
        and name.split(".")[-1] not in network.no_adapter
    ]


def check_targets(network: Network, targets: Any) -> None:
    """Raise UserError unless every target name is the end of some module's name."""
    if isinstance(targets, str) or targets is None:
        return
    for target in _missing(network, targets):
        names = {name.split(".")[-1] for name in linear_layers(network)}
        raise UserError(
            f"the target '{target}' matches no module of the model",
            where=WHERE,
            fix=f"{suggest_name(target, names)} ({_listed(network)})",
        )
    for target in targets:
        reason = network.no_adapter.get(target.split(".")[-1])
        if reason:
            raise UserError(
                f"an adapter on '{target}' would train nothing: {reason}",
                where=WHERE,
                fix=f"choose others: {_listed(network)}",
            )


def _missing(network: Network, targets: str | Iterable[str]) -> list[str]:
    """Return the targets, or the regular expression, that match no module of the network."""
    names = [name for name, _ in network.module.named_modules() if name]
    if isinstance(targets, str):
        return [] if any(re.fullmatch(targets, name) for name in names) else [targets]
    return sorted(
        target
        for target in targets
        if not any(name == target or name.endswith(f".{target}") for name in names)
    )


def _listed(network: Network) -> str:
    names = {name.split(".")[-1] for name in linear_layers(network)}
    return f"linear modules: {', '.join(sorted(names)) or 'none'}"


def _write_full_names(config: Any, names: list[str]) -> None:
    """Write the full names of the adapted modules into a config that is going to be saved.

    They exist in our own network alone. With short names, PEFT and `transformers` would put the
    adapter on a classifier of theirs and leave its head random, without an error.
    """
    if hasattr(config, "target_modules") and names:
        config.target_modules = set(names)
    feedforward = getattr(config, "feedforward_modules", None)
    if isinstance(feedforward, set):
        config.feedforward_modules = {name for name in names if name.endswith(tuple(feedforward))}
