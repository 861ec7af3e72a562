"""Test a backend against the reference implementation on small random inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

# The relative error of float32 kernels with approximate exponentials is below this limit.
TOLERANCE = 1e-3

# Batch, length and width.
Size: TypeAlias = tuple[int, int, int]
SMALL: tuple[Size, ...] = ((2, 40, 16),)


def draw_normal(generator: torch.Generator, *shape: int) -> Tensor:
    """Draw a float32 tensor on the CPU. PyTorch's default dtype and device have no effect."""
    return torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu")


@dataclass(frozen=True, eq=False)
class SelfTest:
    """Compares implementations of one operator with the reference implementation.

    Args:
        reference: the reference implementation. It must support float64.
        draw: function of (batch, length, width, generator). It returns a dict from argument names
            to random CPU tensors. The first tensor must have the shape of the output.
        tolerance: the error of an element may be up to tolerance * (|x| + m), where x is the
            element in the reference tensor, and m is the largest absolute value in this tensor.
    """

    reference: Callable[..., Tensor]
    draw: Callable[[int, int, int, torch.Generator], dict[str, Tensor]]
    tolerance: float = TOLERANCE

    def draw_inputs(
        self, batch: int, length: int, width: int, device: torch.device
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Draw float32 inputs and a gradient of the output. Each call returns the same values."""
        # A generator on the CPU draws the same values for every device.
        generator = torch.Generator().manual_seed(0)
        inputs = self.draw(batch, length, width, generator)
        shape = next(iter(inputs.values())).shape
        grad = draw_normal(generator, *shape).to(device)
        return {name: x.to(device) for name, x in inputs.items()}, grad

    def run_backward(
        self, function: Callable[..., Tensor], inputs: Mapping[str, Tensor], grad: Tensor
    ) -> dict[str, Tensor]:
        """Return the output of a function, and the gradients w.r.t. its inputs.

        The output has the key "values", and a gradient has a key such as "gradient of x".
        """
        leaves = {name: x.detach().requires_grad_() for name, x in inputs.items()}
        out = function(**leaves)
        grads = torch.autograd.grad(out, list(leaves.values()), grad)
        named = {f"gradient of {name}": x for name, x in zip(leaves, grads, strict=True)}
        return {"values": out.detach(), **named}

    def find_mismatch(
        self, function: Callable[..., Tensor], device: torch.device, sizes: Sequence[Size] = SMALL
    ) -> str | None:
        """Describe the first difference from the reference implementation, or return None.

        The reference runs in float64. Exceptions raised by `function` are not caught. The test
        does not depend on whether the caller uses inference mode, no_grad or autocast.
        """
        with (
            torch.inference_mode(False), torch.enable_grad(),
            torch.autocast(device.type, enabled=False),
        ):  # fmt: skip
            # The generator and `next` stop at the first size with a mismatch.
            mismatches = (self._compare(function, device, size) for size in sizes)
            return next(filter(None, mismatches), None)

    def _compare(
        self, function: Callable[..., Tensor], device: torch.device, size: Size
    ) -> str | None:
        inputs, grad = self.draw_inputs(*size, device)
        # Run the reference on the CPU, because MPS devices do not support float64 and CUDA devices
        # may use TF32 for float32 convolutions.
        exact = {name: x.cpu().double() for name, x in inputs.items()}
        want = self.run_backward(self.reference, exact, grad.cpu().double())
        got = self.run_backward(function, inputs, grad)
        wrong = [
            name for name, x in want.items() if not self._is_close(got[name].cpu().double(), x)
        ]
        if not wrong:
            return None
        return f"it differs from the reference in {', '.join(wrong)} at length {size[1]}"

    def _is_close(self, got: Tensor, want: Tensor) -> bool:
        limit = self.tolerance * float(want.abs().max())
        # `allclose` would broadcast tensors of different shapes.
        return got.shape == want.shape and torch.allclose(
            got, want, rtol=self.tolerance, atol=limit
        )
