"""Choose how several processes train one model: with DDP or with FSDP2."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, cast

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from kinopoisk_ft.errors import UserError
from kinopoisk_ft.training.distributed import torchrun
from kinopoisk_ft.training.distributed.processes import world_size
from kinopoisk_ft.training.distributed.sharding import shard_model

Strategy = Literal["auto", "none", "ddp", "fsdp"]


def resolve_strategy(strategy: Strategy) -> Strategy:
    """Return the strategy; "auto" means "ddp" under torchrun, otherwise "none"."""
    if strategy != "auto":
        return strategy
    return "ddp" if torchrun.is_launched() else "none"


def check_strategy(
    strategy: Strategy,
    batch_size: int,
    micro_batch_size: int | None,
    prefix_cache: str,
    compile: str,
    precision: str,
) -> None:
    """Raise UserError if the settings contradict each other or the number of processes."""
    if micro_batch_size is not None and world_size() > 1:
        raise UserError(
            f"trainer.micro_batch_size={micro_batch_size} does not work with several processes, "
            "because each of them must process its part of a batch in a single forward pass",
            where="trainer.micro_batch_size",
            fix="use trainer.micro_batch_size=null; to save memory, start more processes, or lower "
            "trainer.batch_size and increase trainer.accumulate",
        )
    if batch_size < world_size():
        raise UserError(
            f"trainer.batch_size={batch_size} is smaller than the number of processes "
            f"({world_size()}), so some of them would have no reviews",
            where="trainer.batch_size",
            fix=f"start at most {batch_size} processes, or increase trainer.batch_size and lower "
            "trainer.accumulate",
        )
    if prefix_cache != "off" and world_size() > 1:
        raise UserError(
            f"trainer.prefix_cache={prefix_cache} does not work with several processes, because it "
            "bypasses the DDP or FSDP wrapper that synchronizes gradients",
            where="trainer.prefix_cache",
            fix="use trainer.prefix_cache=off, or train in one process",
        )
    if compile != "off" and (world_size() > 1 or prefix_cache != "off"):
        raise UserError(
            f"trainer.compile={compile} does not work with several processes or a prefix cache",
            where="trainer.compile",
            fix="use trainer.compile=off, or one process and trainer.prefix_cache=off",
        )
    if resolve_strategy(strategy) == "fsdp" and precision == "fp16":
        raise UserError(
            "precision fp16 does not work with trainer.strategy=fsdp, because each process would "
            "choose a different loss scale",
            where="trainer.precision",
            fix="use trainer.precision=bf16 or fp32",
        )


def wrap_model(model: nn.Module, strategy: Strategy, device: torch.device) -> nn.Module:
    """Move a model to the device, and return the module to call in training."""
    kind = resolve_strategy(strategy)
    if kind == "fsdp":
        shard_model(model, device)
        return model
    model.to(device)
    if kind == "none" or world_size() == 1:
        return model
    # Gradients that are views of the all-reduce buffers need no additional memory.
    wrapped = DistributedDataParallel(model, gradient_as_bucket_view=True)
    # The buffers are constants such as position ids, so DDP has to broadcast them only once.
    wrapped.broadcast_buffers = False
    return wrapped


@contextmanager
def sync_gradients(model: nn.Module, last: bool) -> Iterator[None]:
    """Synchronize gradients between processes in a `with` block only if `last` is true.

    Args:
        last: whether the block processes the last micro-batch of a step.
    """
    if hasattr(model, "set_requires_gradient_sync"):
        # The model is an FSDPModule.
        cast(Any, model).set_requires_gradient_sync(last)
    if isinstance(model, DistributedDataParallel) and not last:
        # The block must contain the forward pass, in which DDP prepares the all-reduce.
        with model.no_sync():
            yield
    else:
        yield
