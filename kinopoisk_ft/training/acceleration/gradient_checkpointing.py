"""Compute the activations of layers again in the backward pass, instead of storing them.

This is gradient checkpointing (Chen et al., 2016, https://arxiv.org/abs/1604.06174). After the
forward pass, a layer keeps only its inputs. The backward pass restores the random state of the
forward pass, so that dropout draws the same masks and the gradients stay the same.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

from kinopoisk_ft.errors import UserError

log = logging.getLogger(__name__)


@contextmanager
def recompute_activations(model: nn.Module, enabled: bool) -> Iterator[None]:
    """Use gradient checkpointing for the layers of a model during a `with` block.

    If `enabled` is false, nothing changes. Layers in evaluation mode are not affected.

    Raises:
        UserError: the model does not support gradient checkpointing.
    """
    parts = _find_parts(model) if enabled else []
    # Models that write a cache for generation would warn that they cannot do so here.
    found: list[Any] = [getattr(part, "config", None) for part in parts]
    configs = [config for config in found if getattr(config, "use_cache", False)]
    try:
        for config in configs:
            config.use_cache = False
        for part in parts:
            part.gradient_checkpointing = True
            # The reentrant implementation computes no gradients if the inputs of a layer need none,
            # for example if the embeddings below it are frozen.
            part._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)
        yield
    finally:
        for config in configs:
            config.use_cache = True
        for part in parts:
            part.gradient_checkpointing = False
            del part._gradient_checkpointing_func


@contextmanager
def replace_recomputation(model: nn.Module, function: Callable[..., Any]) -> Iterator[None]:
    """Call a function instead of PyTorch's `checkpoint` during a `with` block.

    Args:
        function: gets the forward method of a layer and the inputs of this method, and returns the
            output of the layer.
    """
    parts: list[Any] = [
        part for part in model.modules() if getattr(part, "gradient_checkpointing", False)
    ]
    # Both lists are empty if gradient checkpointing is off.
    before = [part._gradient_checkpointing_func for part in parts]
    try:
        for part in parts:
            part._gradient_checkpointing_func = function
        yield
    finally:
        for part, original in zip(parts, before, strict=True):
            part._gradient_checkpointing_func = original


def _find_parts(model: nn.Module) -> list[Any]:
    # This is the protocol of `transformers`. Layers read the flag, and in some models the module
    # that contains them reads it too, for example to switch off the cache of a decoder.
    parts: list[Any] = [part for part in model.modules() if hasattr(part, "gradient_checkpointing")]
    if not parts:
        raise UserError(
            f"the layers of {type(model).__name__} do not support gradient checkpointing",
            where="trainer.gradient_checkpointing",
            fix="use trainer.gradient_checkpointing=false; to save memory, lower "
            "trainer.micro_batch_size",
        )
    log.info("layers compute their activations again in the backward pass, to save memory")
    return parts
