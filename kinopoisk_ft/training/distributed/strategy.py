"""Choose how processes share a model: each holds all of it (DDP) or a part of it (FSDP2)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel

from kinopoisk_ft.errors import UserError
from kinopoisk_ft.training.distributed import torchrun
from kinopoisk_ft.training.distributed.processes import world_size
from kinopoisk_ft.training.distributed.sharding import shard_model

Strategy = Literal["auto", "none", "ddp", "fsdp"]


def resolve_strategy(strategy: Strategy) -> Strategy:
    """Return the strategy that `auto` stands for: ddp under torchrun, else none."""
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
    """Raise UserError for settings that do not go together, before training starts."""
    if micro_batch_size is not None and world_size() > 1:
        raise UserError(
            f"trainer.micro_batch_size={micro_batch_size} needs a single process: with several, "
            "each trains its share of a batch at once",
            where="trainer.micro_batch_size",
            fix="set it to null and start more processes, or use a smaller batch and "
            "trainer.accumulate",
        )
    if batch_size < world_size():
        raise UserError(
            f"trainer.batch_size={batch_size} is smaller than the number of processes, "
            f"{world_size()}: some would have no review",
            where="trainer.batch_size",
            fix=f"start at most {batch_size} processes, or use a larger batch; "
            "trainer.accumulate=1 does not split it",
        )
    if prefix_cache != "off" and world_size() > 1:
        raise UserError(
            "the prefix cache bypasses the DDP or FSDP wrapper, so gradients would not be shared",
            where="trainer.prefix_cache",
            fix="use trainer.prefix_cache=off, or train in one process",
        )
    if compile != "off" and (world_size() > 1 or prefix_cache != "off"):
        raise UserError(
            f"trainer.compile={compile} needs a single process without the prefix cache",
            where="trainer.compile",
            fix="use trainer.compile=off, or one process and trainer.prefix_cache=off",
        )
    if resolve_strategy(strategy) == "fsdp" and precision == "fp16":
        raise UserError(
            "fp16 does not work with fsdp: each process would choose its own loss scale",
            where="trainer.precision",
            fix="use trainer.precision=bf16 or fp32",
        )


def wrap_model(model: nn.Module, strategy: Strategy, device: torch.device) -> nn.Module:
    """Move a model to its device; return the module to call in training: itself or its DDP."""
    kind = resolve_strategy(strategy)
    if kind == "fsdp":
        shard_model(model, device)
        return model
    model.to(device)
    if kind == "none" or world_size() == 1:
        return model
    wrapped = DistributedDataParallel(model, gradient_as_bucket_view=True)
    # The buffers here are constants, such as positions and masks: sending them once is enough.
    wrapped.broadcast_buffers = False
    return wrapped


@contextmanager
def sync_gradients(model: nn.Module, last: bool) -> Iterator[None]:
    """Run one micro-batch; gradients are exchanged after the last one of an optimizer step."""
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(last)
    if isinstance(model, DistributedDataParallel) and not last:
        with model.no_sync():
            yield
    else:
        yield
