"""Train in fp32, bf16 or fp16. Trained weights and optimizer state are always fp32."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from kinopoisk_ft.errors import UserError, first_line

Chosen = Literal["fp32", "bf16", "fp16"]
Kind = Literal["auto", Chosen]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# Status of a step that was skipped in fp16 because a gradient, but not the loss, was not finite.
OVERFLOW = 1
# Values of ONEDNN_MAX_CPU_ISA that allow bf16 instructions end in one of these.
ISAS_WITH_BF16 = ("ALL", "DEFAULT", "BF16", "FP16", "AMX", "AVX10_1_512", "AVX10_2_512")


class Precision:
    """Runs forward passes, backward passes and optimizer steps in fp32, bf16 or fp16."""

    def __init__(self, kind: Kind, device: torch.device) -> None:
        self.device = device
        self.kind, self.reason = choose_precision(kind, device)
        # A disabled scaler leaves losses and gradients unchanged, and has an empty state.
        self._scaler = torch.amp.GradScaler(device.type, enabled=self.kind == "fp16")
        # Norm of all gradients in the last step, before clipping, (); NaN before the first step.
        self.grad_norm = torch.tensor(math.nan)

    def autocast(self) -> AbstractContextManager[None]:
        """Return the autocast context for a forward pass."""
        return torch.autocast(self.device.type, DTYPES[self.kind], enabled=self.kind != "fp32")

    def backward(self, loss: Tensor) -> None:
        """Accumulate the gradients of a loss; in fp16, multiply it by the loss scale first."""
        self._scaler.scale(loss).backward()

    def unscale(self, optimizer: Optimizer) -> None:
        """Divide the gradients by the loss scale; in fp32 and bf16, do nothing."""
        self._scaler.unscale_(optimizer)

    def step(
        self,
        optimizer: Optimizer,
        parameters: Iterable[nn.Parameter],
        clip_norm: float | None,
        loss: Tensor,
    ) -> Tensor:
        """Clip the gradients, and take an optimizer step.

        The step is skipped if the loss or the gradient norm is not finite.

        Returns:
            The status as a float scalar: 0 if the step was taken, 1 (OVERFLOW) if it was skipped in
            fp16 although the loss was finite, and 2 if it was skipped in any other case.
        """
        parameters = [p for p in parameters if p.grad is not None]
        norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        # With FSDP, the norm is a DTensor.
        if hasattr(norm, "full_tensor"):
            norm = norm.full_tensor()
        self.grad_norm = norm
        if clip_norm is not None:
            nn.utils.clip_grads_with_norm_(parameters, clip_norm, norm)
        # The sum is finite only if both are. It stays on the device, so the CPU does not wait.
        skip = (~torch.isfinite(norm + loss)).float()
        if self.kind == "fp16":
            # GradScaler skips the step itself if gradients are not finite, and halves the scale.
            # An infinite loss may have finite gradients, for example at a logit of minus infinity.
            if torch.isfinite(loss):
                self._scaler.step(optimizer)
            self._scaler.update()
        elif getattr(optimizer, "_step_supports_amp_scaling", False):
            # A fused optimizer reads `found_inf` on the device, so the CPU does not wait for it.
            fused: Any = optimizer
            # `GradScaler.step` sets the same two attributes.
            fused.grad_scale, fused.found_inf = None, skip
            optimizer.step()
            del fused.grad_scale, fused.found_inf
        # For other optimizers, the CPU has to wait for the value.
        elif not skip.item():
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if self.kind == "fp16":
            return skip + (~torch.isfinite(loss)).float()
        return 2 * skip

    def scale_is_large(self) -> bool:
        """Return whether the fp16 loss scale is so large that it may cause an overflow."""
        # A gradient that overflows at a scale below 1 is too large even without scaling.
        return self.kind == "fp16" and self._scaler.get_scale() >= 1

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the loss scaler; empty in fp32 and bf16."""
        return self._scaler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state of the loss scaler."""
        if state:
            self._scaler.load_state_dict(state)


def choose_precision(kind: Kind, device: torch.device) -> tuple[Chosen, str]:
    """Return the precision to use, and the reason for this choice.

    The choice for "auto" depends on the hardware and not on measured times. All runs on a machine
    therefore use the same precision.

    Raises:
        UserError: the requested precision does not work on the device.
    """
    if kind == "fp32":
        return "fp32", "as requested"
    if kind == "auto":
        found, why = _choose_for_cuda(device) if device.type == "cuda" else _choose_for_cpu(device)
        problem = None if found == "fp32" else _find_problem(found, device)
        return ("fp32", f"{found} does not work: {problem}") if problem else (found, why)
    problem = _find_problem(kind, device)
    if problem:
        raise UserError(
            f"precision {kind} does not work on {device.type}: {problem}",
            where="trainer.precision",
            fix="use trainer.precision=auto or fp32",
        )
    return kind, "as requested"


def _choose_for_cuda(device: torch.device) -> tuple[Chosen, str]:
    # Builds for ROCm use the device type "cuda" for AMD GPUs.
    if torch.version.hip:
        return "bf16", "an AMD GPU with ROCm"
    # The CUDA C++ Programming Guide lists the precisions that tensor cores support.
    major, minor = torch.cuda.get_device_capability(device)
    capability = f"compute capability {major}.{minor}"
    if major >= 8:
        return "bf16", capability
    if major == 7:
        return "fp16", f"{capability}, but bf16 needs 8.0"
    return "fp32", f"{capability}, but bf16 needs 8.0 and fp16 needs 7.0"


def _choose_for_cpu(device: torch.device) -> tuple[Chosen, str]:
    if device.type != "cpu":
        return "fp32", f"bf16 is not known to be faster on {device.type}"
    if not torch.backends.mkldnn.is_available():
        return "fp32", "this build of PyTorch has no oneDNN"
    # With bf16 instructions, steps are 1.4 to 3 times faster. Without them, oneDNN converts each
    # number, and steps are slower than in fp32.
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", "ALL").upper()
    if not limit.endswith(ISAS_WITH_BF16):
        return "fp32", f"ONEDNN_MAX_CPU_ISA={limit} excludes bf16"
    # PyTorch's compiler calls these too. The public `get_capabilities` is newer than PyTorch 2.10.
    if torch.cpu._is_amx_tile_supported():
        return "bf16", "the CPU has AMX"
    if torch.cpu._is_avx512_bf16_supported():
        return "bf16", "the CPU has AVX512-BF16"
    return "fp32", "the CPU has neither AMX nor AVX512-BF16"


def _find_problem(kind: str, device: torch.device) -> str | None:
    try:
        weight = torch.ones(8, 8, device=device, requires_grad=True)
        with torch.autocast(device.type, DTYPES[kind]):
            loss = (torch.ones(2, 8, device=device) @ weight).sum()
        torch.amp.GradScaler(device.type, enabled=kind == "fp16").scale(loss).backward()
    except (RuntimeError, ValueError, NotImplementedError) as error:
        return first_line(error)
    return None


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished its queued work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
