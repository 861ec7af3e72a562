"""Hold an implementation of an operator against its definition, on small random inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor

TOLERANCE = 1e-3  # float32 kernels with fast exponentials keep to it


Size: TypeAlias = tuple[int, int, int]
FEW: tuple[Size, ...] = ((2, 40, 16),)  # batch, length, width


@dataclass(frozen=True, eq=False)
class Subject:
    """An operator under test.

    Args:
        reference: its definition, in the dtype of its inputs.
        draw: (batch, length, width, generator) -> the tensors by argument name, on the CPU; the
            first has the shape of the output.
        options: further arguments, the same at each call.
        tolerance: relative, and of a tensor's largest value.
    """

    reference: Callable[..., Tensor]
    draw: Callable[[int, int, int, torch.Generator], dict[str, Tensor]]
    options: Mapping[str, Any] = field(default_factory=dict)
    tolerance: float = TOLERANCE

    def problem(
        self, batch: int, length: int, width: int, device: torch.device
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Return float32 inputs and the gradient of the output, the same at each call."""
        generator = torch.Generator().manual_seed(0)
        drawn = self.draw(batch, length, width, generator)
        shape = next(iter(drawn.values())).shape
        grad = torch.randn(shape, generator=generator).to(device)
        return {name: x.to(device) for name, x in drawn.items()}, grad

    def differentiate(
        self, function: Callable[..., Tensor], inputs: Mapping[str, Tensor], grad: Tensor
    ) -> dict[str, Tensor]:
        """Return the output and, by input name, the gradients."""
        leaves = {name: x.detach().requires_grad_() for name, x in inputs.items()}
        out = function(**leaves, **self.options)
        grads = torch.autograd.grad(out, list(leaves.values()), grad)
        named = {f"gradient of {name}": x for name, x in zip(leaves, grads, strict=True)}
        return {"values": out.detach(), **named}

    def disagreement(
        self, function: Callable[..., Tensor], device: torch.device, sizes: Sequence[Size] = FEW
    ) -> str | None:
        """Return where `function` differs from the definition in float64, None if nowhere.

        What `function` raises is the caller's; whether it records gradients or casts is not.
        """
        with (
            torch.inference_mode(False), torch.enable_grad(),
            torch.autocast(device.type, enabled=False),
        ):  # fmt: skip
            found = (self._disagreement(function, device, size) for size in sizes)
            return next(filter(None, found), None)

    def _disagreement(
        self, function: Callable[..., Tensor], device: torch.device, size: Size
    ) -> str | None:
        inputs, grad = self.problem(*size, device)
        # float64 exists on no MPS device, and on CUDA float32 convolutions may run as TF32
        exact = {name: x.cpu().double() for name, x in inputs.items()}
        want = self.differentiate(self.reference, exact, grad.cpu().double())
        got = self.differentiate(function, inputs, grad)
        wrong = [name for name, x in want.items() if not self._close(got[name].cpu().double(), x)]
        if not wrong:
            return None
        return f"it differs from the reference in {', '.join(wrong)} at length {size[1]}"

    def _close(self, got: Tensor, want: Tensor) -> bool:
        limit = self.tolerance * float(want.abs().max())
        return got.shape == want.shape and torch.allclose(
            got, want, rtol=self.tolerance, atol=limit
        )
