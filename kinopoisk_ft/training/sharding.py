"""FSDP2: every process keeps a part of each weight, of its gradient and of its optimizer state.

Checkpoints and model folders hold whole tensors, so that nothing on disk knows of processes.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedModel

from kinopoisk_ft.training.distributed import is_main, size


def shard(model: nn.Module, device: torch.device) -> None:
    """Divide the model's blocks, and then the rest of it, among the processes, in place.

    The whole model need not fit on a device: a block at a time is brought there and cut. All ranks
    begin with rank 0's weights.
    """
    for tensor in [*model.parameters(), *model.buffers()]:
        if tensor.device.type == "cpu":
            dist.broadcast(tensor.detach(), 0)
    for part in model.modules():
        if isinstance(part, PreTrainedModel):
            part._can_set_attn_implementation()  # kept with the class, whose source it reads
    mesh = init_device_mesh(device.type, (size(),))
    # The root too: weights changed after an evaluation would else not be seen by the next.
    for block in blocks(model):
        fully_shard(block, mesh=mesh, reshard_after_forward=True)
    fully_shard(model, mesh=mesh, reshard_after_forward=True)


def blocks(model: nn.Module) -> list[nn.Module]:
    """Return the layers of a model: what its outermost lists of modules hold."""
    if isinstance(model, nn.ModuleList):
        return list(model)
    return [block for child in model.children() for block in blocks(child)]


def whole(tensor: Tensor) -> Tensor:
    """Return a tensor in full on rank 0; one that is in parts is empty on the others.

    All ranks must ask together. In parts or not, it is then no part of a graph.
    """
    tensor = tensor.detach()
    if not isinstance(tensor, DTensor):
        return tensor
    full = tensor.full_tensor()
    return full.cpu() if is_main() else full.new_empty(0, device="cpu")


def part_of(value: Tensor, like: Tensor) -> Tensor:
    """Return this rank's part of a full tensor that all ranks have, where `like` is in parts."""
    if not isinstance(like, DTensor) or value.shape != like.shape:
        return value
    value = value.to(like.device)
    return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)


def gather(model: nn.Module) -> None:
    """Put whole weights, on the CPU of rank 0, in the place of parts: for saving, not for use.

    Without effect on a model that is not in parts. On other ranks the weights are then empty.
    """
    done: dict[int, nn.Parameter] = {}  # tied weights stay tied
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if isinstance(parameter, DTensor):
                if id(parameter) not in done:
                    done[id(parameter)] = nn.Parameter(whole(parameter), parameter.requires_grad)
                module._parameters[name] = done[id(parameter)]
        if isinstance(module, FSDPModule):
            module.__class__ = type(module).__mro__[module._orig_cls_mro_index]
