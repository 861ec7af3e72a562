"""Use GPU kernels of other packages, but only if they pass a self-test."""

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
        name, module: name of the package in pip, and of its module in Python.
        extension: name of the compiled module. The package can also be installed without this
            module.
        run: calls the kernel with the arguments of the reference implementation.
        self_test: compares `run` with the reference implementation.
        install, rebuild: shell commands that install the package, or rebuild an installed one.
        sizes: batch, length and width of each comparison. Several sizes are needed because a
            package can use a different kernel for another length or width.
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
        """Return whether the package is installed, with or without its compiled kernel."""
        return importlib.util.find_spec(self.module) is not None

    def get_install_command(self) -> str:
        """Return the command that installs or rebuilds the kernel on a machine with a GPU."""
        return self.rebuild if self.is_installed() else self.install

    def diagnose(self, device: torch.device) -> str | None:
        """Run the self-test on a device. Return None if it passes, else an explanation."""
        if not self.is_installed():
            return f"{self.name} is not installed"
        try:
            mismatch = self.self_test.find_mismatch(self.run, device, self.sizes)
        # A kernel built for another GPU or PyTorch version can raise any exception.
        except Exception as error:
            log.debug("%s fails its self-test on %s", self.name, device, exc_info=True)
            if importlib.util.find_spec(self.extension) is None:
                return f"{self.name} is installed without its compiled module {self.extension}"
            reason = next(iter(str(error).splitlines()), "")
            return f"{self.name} fails on {device}: {type(error).__name__}: {reason}"
        return mismatch and f"{self.name} fails its self-test on {device}: {mismatch}"


# Cached, because operators call this function at each of their own calls.
@cache
def find_problem(package: GpuPackage, device: torch.device) -> str | None:
    """Test a package once per device. Return None if its kernel works, else an explanation.

    If the package is installed but does not work, the explanation is also logged as a warning.
    """
    problem = package.diagnose(device)
    if problem and package.is_installed():
        log.warning("%s; to repair it, run: %s", problem, package.get_install_command())
    return problem
