"""Numbers of the forward and backward pass: fp32, bf16 or fp16 with gradient scaling.

Weights and optimizer state are fp32 in each case. A request that cannot be met raises.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from kinopoisk_ft.errors import UserError

log = logging.getLogger(__name__)

Kind = Literal["auto", "fp32", "bf16", "fp16"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
OVERFLOW = 1  # the verdict on a step whose loss was finite, but not its gradient in fp16
WORTH = 1.5  # casting costs some: products must be this much faster before low precision pays


class Precision:
    """One object with one verb for each part of a step; the three kinds have the same shape."""

    def __init__(self, kind: Kind, device: torch.device) -> None:
        self.device = device
        self.kind, self.reason = choose(kind, device)
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


def choose(kind: Kind, device: torch.device) -> tuple[Literal["fp32", "bf16", "fp16"], str]:
    """Return the precision to use and why; raises UserError where the one asked for cannot run."""
    if kind == "fp32":
        return "fp32", "as asked"
    if kind != "auto":
        problem = _cannot_run(kind, device)
        if problem:
            raise UserError(
                f"precision {kind} cannot run on {device.type}: {problem}",
                where="trainer.precision",
                fix="use trainer.precision=auto or fp32",
            )
        return kind, "as asked"
    candidates: list[Literal["bf16", "fp16"]] = (
        ["bf16", "fp16"] if device.type == "cuda" else ["bf16"]
    )
    base = _product_seconds(torch.float32, device)
    told = []
    for candidate in candidates:
        problem = _cannot_run(candidate, device)
        if problem:
            told.append(f"{candidate} cannot run ({problem})")
            continue
        ratio = base / _product_seconds(DTYPES[candidate], device)
        told.append(f"{candidate} matrix products take 1/{ratio:.2f} of fp32's time")
        if ratio >= WORTH:
            return candidate, told[-1]
    return "fp32", "; ".join(told)


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


def _product_seconds(dtype: torch.dtype, device: torch.device) -> float:
    """Return the least time of a matrix product of the size of a transformer's layer."""
    a = torch.randn(512, 768, device=device).to(dtype)
    b = torch.randn(768, 768, device=device).to(dtype)
    times = []
    for _ in range(7):
        wait(device)
        start = time.perf_counter()
        torch.mm(a, b)
        wait(device)
        times.append(time.perf_counter() - start)
    return min(times)


def wait(device: torch.device) -> None:
    """Wait until the device has done what was queued."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
