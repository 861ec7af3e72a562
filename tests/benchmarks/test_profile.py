"""Test that the profile benchmark counts the project's operators as what they are."""

from __future__ import annotations

import importlib.util
from types import ModuleType

import pytest
import torch
from places import ROOT

from kinopoisk_ft.ops.attention import cpu as attention_cpu
from kinopoisk_ft.ops.conv import cpu as conv_cpu
from kinopoisk_ft.ops.dropout import cpu as dropout_cpu
from kinopoisk_ft.ops.rms_norm import cpu as rms_norm_cpu
from kinopoisk_ft.ops.scan import chunked as scan_chunked
from kinopoisk_ft.ops.scan import cpu as scan_cpu
from kinopoisk_ft.ops.ssd import chunked as ssd_chunked

KINDS = {
    attention_cpu: "attention", conv_cpu: "convolution", dropout_cpu: "dropout",
    rms_norm_cpu: "normalisation", scan_chunked: "scan", scan_cpu: "scan", ssd_chunked: "scan",
}  # fmt: skip


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    # The name `profile` belongs to a module of the standard library.
    spec = importlib.util.spec_from_file_location("own_profile", ROOT / "benchmarks/profile.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("module", KINDS, ids=lambda module: module.__name__)
def test_operators_of_the_project_have_their_kind(module: ModuleType, script: ModuleType) -> None:
    functions = [
        x
        for x in vars(module).values()
        if isinstance(x, type) and issubclass(x, torch.autograd.Function)
    ]
    assert functions
    for function in functions:
        # The profiler shows the backward pass under the second name.
        for name in (function.__name__, f"{function.__name__}Backward"):
            assert script.kind_of(name) == KINDS[module], name
