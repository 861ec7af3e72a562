"""Adapters of the PEFT library, told by name what the head is and checked for what they reach."""

from __future__ import annotations

from typing import Any

from peft import PeftConfig, get_peft_model
from torch import nn

from kinopoisk_ft.adapters.base import Adapted
from kinopoisk_ft.errors import UserError, nearest
from kinopoisk_ft.models.foreign import check_imports
from kinopoisk_ft.models.network import Network


class Peft:
    """Any PEFT method: `config` is its own config object."""

    def __init__(self, *, config: PeftConfig, lr: float) -> None:
        self.config, self.lr = config, lr

    def apply(self, network: Network) -> Adapted:
        """Wrap the module; raises UserError for targets that match nothing or cannot be adapted.

        Head and fresh modules are trained whole and saved with the adapter.
        """
        config: Any = self.config
        check_imports(vars(config), "adapter.config")
        check_targets(network, getattr(config, "target_modules", None))
        config.modules_to_save = list(network.head)
        if network.kind == "hf":
            config.task_type = "SEQ_CLS"
        try:
            module = get_peft_model(network.module, config)
        except (ValueError, TypeError, NotImplementedError) as error:
            raise UserError(
                f"{type(config).__name__} cannot work with this model: {error}",
                where="adapter.config",
                fix="choose another adapter, or other adapter.config.target_modules",
            ) from error
        config.base_model_name_or_path = network.base
        fresh = {
            name
            for name, parameter in module.named_parameters()
            if parameter.requires_grad and ".modules_to_save." in name
        }
        return Adapted(module, fresh, is_peft=True)


def check_targets(network: Network, targets: Any) -> None:
    """Raise UserError unless every target name is the end of some module's name."""
    names = [name for name, _ in network.module.named_modules() if name]
    if isinstance(targets, str) or targets is None:
        return
    linear = {
        name.split(".")[-1]
        for name, part in network.module.named_modules()
        if isinstance(part, nn.Linear)
    }
    for target in targets:
        if not any(name == target or name.endswith(f".{target}") for name in names):
            raise UserError(
                f"the target '{target}' matches no module of the model",
                where="adapter.config.target_modules",
                fix=f"{nearest(target, linear)} (linear modules: {', '.join(sorted(linear))})",
            )
        reason = network.no_adapter.get(target.split(".")[-1])
        if reason:
            raise UserError(
                f"an adapter on '{target}' would train nothing: {reason}",
                where="adapter.config.target_modules",
                fix=f"choose among {', '.join(sorted(linear))}",
            )
