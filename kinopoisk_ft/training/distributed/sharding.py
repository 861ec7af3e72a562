"""Shard a model with FSDP2: each process keeps a part of every weight, gradient and moment.

Checkpoints and model folders hold full tensors, so that they do not depend on the number of
processes.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from kinopoisk_ft.training.distributed.processes import is_main, world_size


def shard_model(model: nn.Module, device: torch.device) -> None:
    """Shard the model's blocks, and then the rest of it, among the processes, in place.

    The full model need not fit on a device: each block is moved there and cut on its own. All ranks
    start with the weights of rank 0.
    """
    for tensor in [*model.parameters(), *model.buffers()]:
        if tensor.device.type == "cpu":
            dist.broadcast(tensor.detach(), 0)
    for part in model.modules():
        if hasattr(part, "_can_set_attn_implementation"):
            # transformers reads the source of the class here, and caches the answer with the class.
            # fully_shard replaces that class by one without source.
            cast(Any, part)._can_set_attn_implementation()
    mesh = init_device_mesh(device.type, (world_size(),))
    # Reshard the root as well. Otherwise an evaluation would keep its full weights, and the next
    # evaluation would not see what has changed since.
    for block in find_blocks(model):
        fully_shard(block, mesh=mesh, reshard_after_forward=True)
    fully_shard(model, mesh=mesh, reshard_after_forward=True)


def find_blocks(model: nn.Module) -> list[nn.Module]:
    """Return the layers of a model: the members of its outermost module lists."""
    if isinstance(model, nn.ModuleList):
        return list(model)
    return [block for child in model.children() for block in find_blocks(child)]


def gather_tensor(tensor: Tensor) -> Tensor:
    """Return the full tensor, detached; for a sharded tensor on rank 0 only, else empty.

    All ranks must call this together.
    """
    tensor = tensor.detach()
    if not isinstance(tensor, DTensor):
        return tensor
    full = tensor.full_tensor()
    return full.cpu() if is_main() else full.new_empty(0, device="cpu")


def shard_like(value: Tensor, like: Tensor) -> Tensor:
    """Return this rank's part of a full tensor that all ranks have, if `like` is sharded."""
    if not isinstance(like, DTensor) or value.shape != like.shape:
        return value
    value = value.to(like.device)
    return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)


def gather_model(model: nn.Module) -> None:
    """Replace sharded weights by full ones on the CPU of rank 0, to save the model.

    On the other ranks the weights are then empty. A model that is not sharded stays as it is.
    """
    # By the id of a sharded weight, so that tied weights stay tied.
    gathered: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, weight in module._parameters.items():
            if isinstance(weight, DTensor):
                if id(weight) not in gathered:
                    gathered[id(weight)] = nn.Parameter(gather_tensor(weight), weight.requires_grad)
                module._parameters[name] = gathered[id(weight)]
        if isinstance(module, FSDPModule):
            module.__class__ = type(module).__mro__[module._orig_cls_mro_index]
