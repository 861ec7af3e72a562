"""Shard a model over several processes with FSDP2.

Checkpoints and saved models contain full tensors, which do not depend on the number of processes.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from kinopoisk_ft.training.distributed.processes import is_main, world_size


def shard_model(model: nn.Module, device: torch.device) -> None:
    """Shard a model in place, with the weights of rank 0.

    Blocks are sharded one by one, so that the full model does not have to fit on the device.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    # DDP sends the weights of rank 0 to the other ranks by itself, but `fully_shard` does not.
    for tensor in [*model.parameters(), *model.buffers()]:
        if tensor.device.type == "cpu":
            dist.broadcast(tensor.detach(), 0)
    for part in model.modules():
        if hasattr(part, "_can_set_attn_implementation"):
            # This method inspects the source code of the class, and caches the result. It has to
            # run now, because fully_shard replaces the class with one that has no source code.
            cast(Any, part)._can_set_attn_implementation()
    mesh = init_device_mesh(device.type, (world_size(),))
    # Reshard the root module as well. Otherwise it would keep its full weights after an evaluation,
    # and the next evaluation would use these outdated weights.
    for block in find_blocks(model):
        fully_shard(block, mesh=mesh, reshard_after_forward=True)
    # The root comes last. Its group gets the parameters that are in no block.
    fully_shard(model, mesh=mesh, reshard_after_forward=True)


def find_blocks(model: nn.Module) -> list[nn.Module]:
    """Return the layers of a model: the modules in the outermost `nn.ModuleList`s."""
    if isinstance(model, nn.ModuleList):
        return list(model)
    return [block for child in model.children() for block in find_blocks(child)]


def is_sharded(tensor: Tensor) -> bool:
    """Return whether a tensor is a DTensor.

    This function does not import the class, because the import takes a second.
    """
    return hasattr(tensor, "full_tensor")


def gather_tensor(tensor: Tensor) -> Tensor:
    """Return the full tensor, detached.

    If the tensor is sharded, ranks other than 0 get an empty tensor. All ranks must call this
    function together.
    """
    tensor = tensor.detach()
    if not is_sharded(tensor):
        return tensor
    # All ranks must take part in this all-gather, although only rank 0 keeps the result.
    full = cast(Any, tensor).full_tensor()
    return full.cpu() if is_main() else full.new_empty(0, device="cpu")


def shard_like(value: Tensor, like: Tensor) -> Tensor:
    """Shard a full tensor in the same way as `like`.

    Return the tensor unchanged if `like` is not sharded or has another shape.
    """
    if not is_sharded(like) or value.shape != like.shape:
        return value
    from torch.distributed.tensor import distribute_tensor

    sharded: Any = like
    value = value.to(like.device)
    # With src_data_rank=None, nothing is sent, because each rank already has the full tensor.
    return distribute_tensor(value, sharded.device_mesh, sharded.placements, src_data_rank=None)


def gather_model(model: nn.Module) -> None:
    """Replace sharded weights with full weights on the CPU of rank 0, to save the model.

    On the other ranks, the weights become empty.
    """
    # Full weights by the id of the sharded weight, so that tied weights stay tied.
    gathered: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, weight in module._parameters.items():
            if weight is not None and is_sharded(weight):
                if id(weight) not in gathered:
                    gathered[id(weight)] = nn.Parameter(gather_tensor(weight), weight.requires_grad)
                module._parameters[name] = gathered[id(weight)]
        # Undo the replacement of the class by fully_shard.
        if hasattr(module, "_orig_cls_mro_index"):
            module.__class__ = type(module).__mro__[cast(Any, module)._orig_cls_mro_index]
