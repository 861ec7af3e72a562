"""Test the audit of the pinned packages: refusals, and reports of unknown packages."""

from __future__ import annotations

import importlib.util
from email.message import Message
from importlib.metadata import distributions
from types import ModuleType
from typing import Any

import pytest
from places import ROOT


@pytest.fixture(scope="module")
def audit() -> ModuleType:
    spec = importlib.util.spec_from_file_location("audit", ROOT / ".ci" / "audit.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def package(name: str, **fields: str) -> Any:
    message = Message()
    message["Name"] = name
    for key, value in fields.items():
        message[key.replace("_", "-")] = value
    return message


@pytest.mark.parametrize(
    ("expression", "allowed"),
    [
        ("MIT", True), ("Apache-2.0 WITH LLVM-exception AND (BSD-3-Clause OR MIT)", True),
        ("GPL-3.0-only OR MIT", True), ("GPL-3.0-only", False), ("MIT AND AGPL-3.0", False),
        ("none stated", False), ("ISC License (ISCL)", True), ("MPL-2.0 AND MIT", True),
        ("Other/Proprietary License", False),
    ],
)  # fmt: skip
def test_licences(audit: ModuleType, expression: str, allowed: bool) -> None:
    assert audit.allowed(expression) == allowed


def test_a_licence_is_read_from_each_field(audit: ModuleType) -> None:
    packages = [
        package("a.B", License_Expression="GPL-3.0-only", License="MIT"),
        package("c", Classifier="License :: OSI Approved :: MIT License"),
        package("d", License="Proprietary\nand long"), package("e"),
        package("not-pinned", License="Proprietary"),
    ]  # fmt: skip
    names = audit.pinned("# comment\nA_b==1\nc==2\nd==3\ne==4\n")
    assert audit.refused(packages, names) == [
        "a.B: GPL-3.0-only", "d: Proprietary", "e: none stated"
    ]  # fmt: skip


def test_the_pinned_set_has_licences_of_the_list(audit: ModuleType) -> None:
    names = audit.pinned((ROOT / "constraints.txt").read_text(encoding="utf-8"))
    assert len(names) > 150
    assert audit.refused((d.metadata for d in distributions()), names) == []


def test_unknown_packages_are_reported(audit: ModuleType) -> None:
    flaw = {"id": "CVE-1", "fix_versions": ["2.1"]}
    known = {"name": "a", "version": "2.0", "vulns": []}
    flawed = {**known, "vulns": [flaw]}
    skipped = {"name": "a", "skip_reason": "not found"}
    judge = audit.judge
    assert judge({"dependencies": [known]}, [])[0] == 0
    code, lines = judge({"dependencies": [known, flawed, skipped]}, [])
    assert code == 1
    assert lines[0] == "VULNERABLE a 2.0: CVE-1, fixed in 2.1"
    assert "2 of 3 packages looked up" in lines[1]
    assert judge({"dependencies": [known]}, ["b: GPL"])[0] == 1
    for nothing in (None, {"dependencies": [skipped]}):
        code, lines = judge(nothing, [])
        assert code == audit.UNKNOWN
        assert "NOT AUDITED" in lines[-1]
