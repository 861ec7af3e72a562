"""Use a GPU kernel of another package only if the kernel passes a self-test."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from kinopoisk_ft.errors import first_line
from kinopoisk_ft.ops.self_test import SelfTest, Size

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class GpuPackage:
    """A package with a CUDA kernel for one operator.

    Args:
        name: name of the package in pip.
        module: name of the package in Python.
        extension: name of the compiled module. The package can be installed without this module.
        run: calls the kernel with the arguments of the reference implementation.
        self_test: compares `run` with the reference implementation.
        install: shell command that installs the package.
        rebuild: shell command that builds an installed package again.
        sizes: batch, length and width of each comparison. Several sizes are needed if the package
            uses different kernels for different sizes.
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
        # The import itself can fail if the kernel was built for another version of PyTorch.
        return importlib.util.find_spec(self.module) is not None

    def get_install_command(self) -> str:
        """Return the command that installs or rebuilds the package."""
        return self.rebuild if self.is_installed() else self.install

    def diagnose(self, device: torch.device) -> str | None:
        """Run the self-test on a device. Return the problem as text, or None if there is none."""
        if not self.is_installed():
            return f"{self.name} is not installed"
        try:
            mismatch = self.self_test.find_mismatch(self.run, device, self.sizes)
        # A kernel built for another GPU or PyTorch version can raise any exception.
        except Exception as error:
            log.debug("%s fails its self-test on %s", self.name, device, exc_info=True)
            if importlib.util.find_spec(self.extension) is None:
                return f"{self.name} is installed without its compiled module {self.extension}"
            return f"{self.name} fails on {device}: {type(error).__name__}: {first_line(error)}"
        return mismatch and f"{self.name} fails its self-test on {device}: {mismatch}"


# Cached, because operators call this function at each of their own calls.
@cache
def find_problem(package: GpuPackage, device: torch.device) -> str | None:
    """Test a package once per device. Return the problem as text, or None if there is none.

    If the package is installed but does not work, log a warning.
    """
    problem = package.diagnose(device)
    if problem and package.is_installed():
        log.warning("%s; to repair it, run: %s", problem, package.get_install_command())
    return problem
