"""GPU kernels of other packages, trusted only after a self-test."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from kinopoisk_ft.ops.self_test import Size, Subject

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class GpuPackage:
    """A package with a CUDA kernel for one operator.

    Args:
        name, module: as pip and as Python call it.
        extension: the compiled module, which a package can be installed without.
        run: the kernel, called as the subject's definition.
        install, rebuild: the line that installs it, and the one that mends an installed one.
        sizes: batch, length and width of the self-tests; kernels differ by length and by width.
    """

    name: str
    module: str
    extension: str
    run: Callable[..., Tensor]
    subject: Subject
    install: str
    rebuild: str
    sizes: tuple[Size, ...]

    def installed(self) -> bool:
        """Return whether the package is there, its kernel or not."""
        return importlib.util.find_spec(self.module) is not None

    def fix(self) -> str:
        """Return the line that would make it work on a machine with an NVIDIA GPU."""
        return self.rebuild if self.installed() else self.install

    def diagnose(self, device: torch.device) -> str | None:
        """Compare values and gradients on a few rows with the definition; return what is wrong."""
        if not self.installed():
            return f"{self.name} is not installed"
        try:
            wrong = self.subject.disagreement(self.run, device, self.sizes)
        except Exception as error:
            log.debug("%s fails its self-test on %s", self.name, device, exc_info=True)
            if importlib.util.find_spec(self.extension) is None:
                return f"{self.name} is installed without its compiled {self.extension}"
            reason = next(iter(str(error).splitlines()), "")
            return f"{self.name} fails on {device}: {type(error).__name__}: {reason}"
        return wrong and f"{self.name} fails its self-test on {device}: {wrong}"


@cache
def trouble(package: GpuPackage, device: torch.device) -> str | None:
    """Return what is wrong with a package on a device, tested once; says it if it is installed."""
    found = package.diagnose(device)
    if found and package.installed():
        log.warning("%s; to mend it: %s", found, package.fix())
    return found
