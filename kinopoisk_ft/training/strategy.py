"""How the processes of a run share a model: each has it whole (DDP), or a part of it (FSDP2)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel

from kinopoisk_ft import ranks
from kinopoisk_ft.errors import UserError
from kinopoisk_ft.training.distributed import size
from kinopoisk_ft.training.sharding import shard

Strategy = Literal["auto", "none", "ddp", "fsdp"]


def chosen(strategy: Strategy) -> Strategy:
    """Return the strategy that `auto` stands for: ddp under torchrun, else none."""
    if strategy != "auto":
        return strategy
    return "ddp" if ranks.launched() else "none"


def check_strategy(
    strategy: Strategy,
    batch_size: int,
    micro_batch_size: int | None,
    prefix_cache: str,
    compile: str,
    precision: str,
) -> None:
    """Raise UserError for settings that do not go together, before anything begins."""
    if micro_batch_size is not None and size() > 1:
        raise UserError(
            f"trainer.micro_batch_size={micro_batch_size} is for one process: of several each "
            "takes its share of a batch at once",
            where="trainer.micro_batch_size",
            fix="leave it null and start more processes, or give a smaller batch and "
            "trainer.accumulate",
        )
    if batch_size < size():
        raise UserError(
            f"trainer.batch_size={batch_size} gives {size()} processes less than a review each",
            where="trainer.batch_size",
            fix=f"start at most {batch_size} processes, or give a larger batch; "
            "trainer.accumulate=1 keeps it whole",
        )
    if prefix_cache != "off" and size() > 1:
        raise UserError(
            "the prefix cache goes round the model by which the processes share gradients",
            where="trainer.prefix_cache",
            fix="use trainer.prefix_cache=off, or train in one process",
        )
    if compile != "off" and (size() > 1 or prefix_cache != "off"):
        raise UserError(
            f"trainer.compile={compile} is for one process that calls the whole model",
            where="trainer.compile",
            fix="use trainer.compile=off, or one process and trainer.prefix_cache=off",
        )
    if chosen(strategy) == "fsdp" and precision == "fp16":
        raise UserError(
            "the loss scale of fp16 is not kept alike for a model in parts",
            where="trainer.precision",
            fix="use trainer.precision=bf16 or fp32",
        )


def placed(model: nn.Module, strategy: Strategy, device: torch.device) -> nn.Module:
    """Bring a model to its device; returns by what training calls it: itself, or DDP around it."""
    kind = chosen(strategy)
    if kind == "fsdp":
        shard(model, device)
        return model
    model.to(device)
    if kind == "none" or size() == 1:
        return model
    around = DistributedDataParallel(model, gradient_as_bucket_view=True)
    around.broadcast_buffers = False  # they are constants here, sent once: positions and masks
    return around


@contextmanager
def reducing(model: nn.Module, last: bool) -> Iterator[None]:
    """Run a micro-batch; gradients are shared with the last one of an optimizer step."""
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(last)
    if isinstance(model, DistributedDataParallel) and not last:
        with model.no_sync():
            yield
    else:
        yield
