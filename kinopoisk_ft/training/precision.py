"""Numbers of the forward and backward pass: fp32, bf16 or fp16 with gradient scaling.

Weights and optimizer state are fp32 in each case. A request that cannot be met raises.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from kinopoisk_ft.errors import UserError

Kind = Literal["auto", "fp32", "bf16", "fp16"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
OVERFLOW = 1  # the verdict on a step whose loss was finite, but not its gradient in fp16
# Ends of the values of oneDNN's variable that allow such instructions.
ISAS_WITH_BF16 = ("ALL", "DEFAULT", "BF16", "FP16", "AMX", "AVX10_1_512", "AVX10_2_512")


class Precision:
    """One object with one verb for each part of a step; the three kinds have the same shape."""

    def __init__(self, kind: Kind, device: torch.device) -> None:
        self.device = device
        self.kind, self.reason = choose_precision(kind, device)
        self._scaler = torch.amp.GradScaler(device.type, enabled=self.kind == "fp16")

    def autocast(self) -> AbstractContextManager[None]:
        """Return the context of a forward pass."""
        return torch.autocast(self.device.type, DTYPES[self.kind], enabled=self.kind != "fp32")

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a loss."""
        self._scaler.scale(loss).backward()

    def unscale(self, optimizer: Optimizer) -> None:
        """Bring gradients back to their true size, before they are looked at or clipped."""
        self._scaler.unscale_(optimizer)

    def step(
        self,
        optimizer: Optimizer,
        parameters: Iterable[nn.Parameter],
        clip_norm: float | None,
        loss: Tensor,
    ) -> Tensor:
        """Clip and step, but skip the step if the loss or the gradients' norm is not finite.

        A fused optimizer leaves the step out by itself, told by a tensor, so that nothing waits
        for the device; for others the verdict has to be read.

        Returns:
            () float: 0 stepped, OVERFLOW skipped for a gradient in fp16, 2 skipped otherwise.
        """
        parameters = [p for p in parameters if p.grad is not None]
        norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        if isinstance(norm, DTensor):
            norm = norm.full_tensor()
        if clip_norm is not None:
            nn.utils.clip_grads_with_norm_(parameters, clip_norm, norm)
        skip = (~torch.isfinite(norm + loss)).float()
        if self.kind == "fp16":
            self._scaler.step(optimizer)
            self._scaler.update()
        elif getattr(optimizer, "_step_supports_amp_scaling", False):
            fused: Any = optimizer
            fused.grad_scale, fused.found_inf = None, skip
            optimizer.step()
            del fused.grad_scale, fused.found_inf
        elif not skip.item():
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if self.kind == "fp16":
            return skip + (~torch.isfinite(loss)).float()
        return 2 * skip

    def scale_is_large(self) -> bool:
        """Return whether fp16's loss scale may still be why gradients overflow."""
        return self.kind == "fp16" and self._scaler.get_scale() >= 1

    def state_dict(self) -> dict[str, Any]:
        """Return the state of fp16's loss scale; empty for the others."""
        return self._scaler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with a loss scale."""
        if state:
            self._scaler.load_state_dict(state)


def choose_precision(
    kind: Kind, device: torch.device
) -> tuple[Literal["fp32", "bf16", "fp16"], str]:
    """Return the precision to use and why.

    `auto` asks what the hardware has, and measures nothing: all jobs of a sweep, and all sweeps on
    a machine, train in the same precision, whatever else runs there.

    Raises:
        UserError: the precision that was asked for cannot run.
    """
    if kind == "fp32":
        return "fp32", "as asked"
    if kind == "auto":
        found, why = _fast_on_cuda(device) if device.type == "cuda" else _fast_on(device)
        problem = None if found == "fp32" else _cannot_run(found, device)
        return ("fp32", f"{found} cannot run: {problem}") if problem else (found, why)
    problem = _cannot_run(kind, device)
    if problem:
        raise UserError(
            f"precision {kind} cannot run on {device.type}: {problem}",
            where="trainer.precision",
            fix="use trainer.precision=auto or fp32",
        )
    return kind, "as asked"


def _fast_on_cuda(device: torch.device) -> tuple[Literal["fp32", "bf16", "fp16"], str]:
    """Return what a GPU's matrix units multiply, by NVIDIA's CUDA C++ Programming Guide."""
    if torch.version.hip:
        return "bf16", "an AMD GPU with ROCm"
    major, minor = torch.cuda.get_device_capability(device)
    told = f"compute capability {major}.{minor}"
    if major >= 8:
        return "bf16", told
    if major == 7:
        return "fp16", f"{told}: bf16 needs 8.0"
    return "fp32", f"{told}: bf16 needs 8.0, fp16 7.0"


def _fast_on(device: torch.device) -> tuple[Literal["fp32", "bf16"], str]:
    """Return bf16 where an x86 CPU multiplies it in hardware: steps take 1/1.4 to 1/3 of the time.

    Without such instructions oneDNN converts each number, and steps take longer than in fp32.
    """
    if device.type != "cpu":
        return "fp32", f"on {device.type} bf16 is not known to be faster"
    if not torch.backends.mkldnn.is_available():
        return "fp32", "this build of PyTorch has no oneDNN"
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", "ALL").upper()
    if not limit.endswith(ISAS_WITH_BF16):
        return "fp32", f"ONEDNN_MAX_CPU_ISA={limit} rules bf16 out"
    # PyTorch's compiler asks the same; the public `get_capabilities` is newer than PyTorch 2.10.
    if torch.cpu._is_amx_tile_supported():
        return "bf16", "the CPU has AMX"
    if torch.cpu._is_avx512_bf16_supported():
        return "bf16", "the CPU has AVX512-BF16"
    return "fp32", "the CPU has neither AMX nor AVX512-BF16"


def _cannot_run(kind: str, device: torch.device) -> str | None:
    """Return why a small product with its gradient fails in this precision, None if it works."""
    try:
        weight = torch.ones(8, 8, device=device, requires_grad=True)
        with torch.autocast(device.type, DTYPES[kind]):
            loss = (torch.ones(2, 8, device=device) @ weight).sum()
        torch.amp.GradScaler(device.type, enabled=kind == "fp16").scale(loss).backward()
    except (RuntimeError, ValueError, NotImplementedError) as error:
        return str(error).splitlines()[0]
    return None


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what was queued."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
