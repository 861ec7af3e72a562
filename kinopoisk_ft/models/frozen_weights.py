"""Store the frozen matrices of a base model in bf16, and compute with them in any precision.

This halves the memory of these weights. Norms, biases, all trained weights, and the hidden states
between the layers are fp32. `from_pretrained` rounds all weights of an fp32 checkpoint to bf16
first, so norms, biases and embeddings are less precise than with an fp32 base. For matrices, this
makes no difference under bf16 autocast, because each product rounds them to bf16 anyway.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from transformers.pytorch_utils import Conv1D

from kinopoisk_ft.errors import UserError
from kinopoisk_ft.models.inspection import run_example_batch

log = logging.getLogger(__name__)

Dtype = Literal["fp32", "bf16"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class _Product(torch.autograd.Function):
    """The product x @ weight.T, which keeps only the stored weight for the backward pass.

    `F.linear` would keep a copy of each weight in the dtype of x.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        """Compute (..., out) from x (..., in) and a frozen weight (out, in)."""
        ctx.save_for_backward(weight)
        # The converted copy of the weight is freed after the product.
        return F.linear(x, weight.to(x.dtype))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        """Compute the gradient of x."""
        (weight,) = ctx.saved_tensors
        # The weight is frozen, so it gets no gradient.
        return grad @ weight.to(grad.dtype), None


def _multiply(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    # Autocast itself converts x and the weight to its dtype.
    if weight.dtype == x.dtype or torch.is_autocast_enabled(x.device.type):
        return F.linear(x, weight, bias)
    out: Tensor = _Product.apply(x, weight)
    return out if bias is None else out + bias


class Bf16Linear(nn.Linear):
    """A linear layer whose weight may be stored in bf16."""

    def forward(self, input: Tensor) -> Tensor:
        """Compute (..., out) from (..., in).

        The result has the dtype of autocast, or of the input if autocast is off.
        """
        return _multiply(input, self.weight, self.bias)


class Bf16Conv1D(Conv1D):
    """The linear layer of GPT-2 with a weight (in, out) that may be stored in bf16."""

    def forward(self, x: Tensor) -> Tensor:
        """Compute (..., out) from (..., in).

        The result has the dtype of autocast, or of the input if autocast is off.
        """
        # The transposed view has the shape (out, in), which `F.linear` expects.
        return _multiply(x, self.weight.T, self.bias)


class Bf16Embedding(nn.Embedding):
    """An embedding whose weight may be stored in bf16; its output is fp32."""

    def forward(self, input: Tensor) -> Tensor:
        """Return the embeddings (..., d_model) of ids."""
        return super().forward(input).float()


STORED: dict[type[nn.Module], type[nn.Module]] = {nn.Linear: Bf16Linear, Conv1D: Bf16Conv1D}


def store_in_bf16(model: Any) -> None:
    """Store the matrices of linear layers and token embeddings in bf16, and other weights in fp32.

    Embeddings of positions, and embeddings that scale their output (Gemma), also stay fp32.

    Args:
        model: a model of `transformers`.
    """
    tokens = model.get_input_embeddings()
    matrices: set[Tensor] = set()
    for part in model.modules():
        # Subclasses may compute something else, so compare exact types.
        is_embedding = part is tokens and type(part) is nn.Embedding
        if is_embedding or type(part) in STORED:
            # A new class, instead of a new module, keeps the weights and hooks of the layer.
            part.__class__ = Bf16Embedding if is_embedding else STORED[type(part)]
            matrices.add(part.weight)
    for tensor in [*model.parameters(), *model.buffers()]:
        if tensor.is_floating_point():
            dtype = torch.bfloat16 if tensor in matrices else torch.float32
            # The Parameter objects stay the same, because they may be tied.
            tensor.data = tensor.data.to(dtype)


def check_stored(module: nn.Module, name: str) -> None:
    """Log how many weights are stored in bf16, and check that the model can compute with them.

    Raises:
        UserError: the code of the model uses these weights without calling their layers.
    """
    nbytes = sum(p.nbytes for p in module.parameters() if p.dtype == torch.bfloat16)
    if not nbytes:
        return
    log.info("%.0f MiB of the base weights are stored in bf16", nbytes / 2**20)
    try:
        with torch.no_grad():
            run_example_batch(module)
    # PyTorch raises RuntimeError if the factors of a product have different dtypes.
    except RuntimeError as error:
        raise UserError(
            f"the code of '{name}' cannot compute with matrices in bf16: {error}",
            where="model.dtype",
            fix="use model.dtype=fp32",
        ) from error


def find_dtype(module: nn.Module) -> Dtype:
    """Return the dtype in which the matrices of a module are stored."""
    return "bf16" if any(p.dtype == torch.bfloat16 for p in module.parameters()) else "fp32"


def store_in_fp32(module: nn.Module, names: Iterable[str]) -> None:
    """Store submodules in fp32, because they are trained.

    Args:
        names: ends of dotted names, as in `modules_to_save` of PEFT.
    """
    ends = tuple(f".{name}" for name in names)
    for name, part in module.named_modules():
        if ends and f".{name}".endswith(ends):
            part.float()
