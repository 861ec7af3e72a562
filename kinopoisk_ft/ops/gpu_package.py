"""Use GPU kernels of other packages, but only after they pass a self-test."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from kinopoisk_ft.ops.self_test import SelfTest, Size

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class GpuPackage:
    """Describe a package with a CUDA kernel for one operator.

    Args:
        name, module: names that pip and Python use.
        extension: name of the compiled module; the package can be installed without it.
        run: calls the kernel with the arguments of the definition.
        self_test: compares the kernel with the definition.
        install, rebuild: commands that install the package, and that rebuild an installed one.
        sizes: batch, length and width of the self-tests; kernels differ by length and by width.
    """

    name: str
    module: str
    extension: str
    run: Callable[..., Tensor]
    self_test: SelfTest
    install: str
    rebuild: str
    sizes: tuple[Size, ...]

    def is_installed(self) -> bool:
        """Check whether Python finds the package, with or without its compiled kernel."""
        return importlib.util.find_spec(self.module) is not None

    def get_install_command(self) -> str:
        """Get the command that makes the kernel work on a machine with an NVIDIA GPU."""
        return self.rebuild if self.is_installed() else self.install

    def diagnose(self, device: torch.device) -> str | None:
        """Run the self-test on a device; explain what is wrong, or return None if it passes."""
        if not self.is_installed():
            return f"{self.name} is not installed"
        try:
            mismatch = self.self_test.find_mismatch(self.run, device, self.sizes)
        # A kernel built for another GPU or another PyTorch can raise anything.
        except Exception as error:
            log.debug("%s fails its self-test on %s", self.name, device, exc_info=True)
            if importlib.util.find_spec(self.extension) is None:
                return f"{self.name} is installed without its compiled {self.extension}"
            reason = next(iter(str(error).splitlines()), "")
            return f"{self.name} fails on {device}: {type(error).__name__}: {reason}"
        return mismatch and f"{self.name} fails its self-test on {device}: {mismatch}"


# Cached, because operators ask at each call.
@cache
def find_problem(package: GpuPackage, device: torch.device) -> str | None:
    """Test a package once per device and explain what is wrong; None if its kernel works.

    A package that is installed but does not work is logged as a warning.
    """
    problem = package.diagnose(device)
    if problem and package.is_installed():
        log.warning("%s; to repair it, run: %s", problem, package.get_install_command())
    return problem
